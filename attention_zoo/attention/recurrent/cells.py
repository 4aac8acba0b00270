"""Recurrent networks whose cells are not linear in the state: they run token by token."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn.functional import linear

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import RecurrentAttention
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.caches import Cache, StateCache
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled, upcast

States = tuple[Tensor, ...]  # [b d] each, the hidden state first
Token = dict[str, Tensor]  # what a step gets of a token, [b n] each
StepResult = tuple[States, States]  # the states, once to go on from and once to return


class RecurrentCell(nn.Module):
    """A recurrent network: h_t, … = step(x_t, h_{t−1}, …).

    A cell overrides `step`, `implied_steps` and `naive_step`. States are in float32 at least.
    """

    gates: ClassVar[int]  # projections of the token, and of the hidden state
    num_states: ClassVar[int] = 1

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.dim = dim
        self.input = nn.Linear(dim, self.gates * dim, bias=bias)
        self.hidden = nn.Linear(dim, self.gates * dim, bias=bias)

    def step(self, inputs: Tensor, states: States) -> States:
        """Compute the states after a token, from its projections [b n] and the states before."""
        raise NotImplementedError

    def implied_steps(self, inputs: Tensor, before: Tensor, states: States) -> Steps:
        """Return the gates as steps of a decaying state, which gives the same outputs.

        All are [b t …]: projections of tokens, the hidden states before them, the states after.
        """
        raise NotImplementedError

    def project_hidden(self, hidden: Tensor) -> Tensor:
        """Project hidden states [… d] to [… n]."""
        bias = None if self.hidden.bias is None else upcast(self.hidden.bias)
        return linear(hidden, upcast(self.hidden.weight), bias)

    def forward(self, x: Tensor, span: TokenSpan, states: States | None = None) -> States:
        """Compute the states [b t d] after each token x [b t d]; None stands for zeros before."""
        inputs = upcast(self.input(x))
        if states is None:
            zeros = inputs.new_zeros(len(x), self.dim)
            states = tuple(zeros.clone() for _ in range(self.num_states))
        parts = {"inputs": inputs}
        if span.key_mask is not None:
            parts["real"] = span.key_mask[..., None].expand(len(x), -1, -1)
        if span.segment_starts is not None:
            parts["starts"] = span.segment_starts[..., None].expand(len(x), -1, -1)

        def masked_step(before: States, token: Token) -> StepResult:
            if "starts" in token:
                before = tuple(part.masked_fill(token["starts"], 0.0) for part in before)
            after = self.step(token["inputs"], before)
            if "real" in token:
                pairs = zip(after, before, strict=True)
                after = tuple(torch.where(token["real"], new, old) for new, old in pairs)
            return after, tuple(part.clone() for part in after)

        with autocast_disabled(x):
            return run_steps(masked_step, states, parts)

    def trace(self, x: Tensor, span: TokenSpan) -> Steps:
        """Return the implied steps [b t …] of tokens x [b t d]."""
        states = self(x, span)
        before = torch.cat([torch.zeros_like(states[0][:, :1]), states[0][:, :-1]], dim=1)
        if span.segment_starts is not None:
            before = before.masked_fill(span.segment_starts[..., None], 0.0)
        with autocast_disabled(x):
            return self.implied_steps(upcast(self.input(x)), before, states)

    def naive(self, x: Tensor, visible: Tensor) -> Tensor:
        """Run over the tokens that see themselves, by visible [b t t], for the tests: [b t d]."""
        states, outputs = tuple(torch.zeros_like(x[:, 0]) for _ in range(self.num_states)), []
        for t in range(x.shape[1]):
            is_real, is_first = visible[:, t, t, None], ~visible[:, t, :t].any(dim=-1)[:, None]
            states = tuple(torch.where(is_first, 0.0, part) for part in states)
            of_token = naive.linear(self.input, x[:, t]).chunk(self.gates, dim=-1)
            after = self.naive_step(of_token, self.naive_hidden(states[0]), states)
            pairs = zip(after, states, strict=True)
            states = tuple(torch.where(is_real, new, old) for new, old in pairs)
            outputs.append(states[0])
        return torch.stack(outputs, dim=1)

    def naive_hidden(self, hidden: Tensor) -> States:
        """Compute the projections of the hidden state [b d]."""
        return naive.linear(self.hidden, hidden).chunk(self.gates, dim=-1)

    def naive_step(self, x: States, hidden: States, states: States) -> States:
        """Compute the cell from the projections of the token and of the hidden state, as listed."""
        raise NotImplementedError


class CellAttention(RecurrentAttention):
    """A recurrent network in place of attention, whose hidden state is the output.

    Each channel is a head of its own, as its gates are: they say how much of each earlier token's
    candidate is left, so there is a weight for every channel. A variant names its cell.

    Args:
        bias: whether the projections of the token and of the hidden state have a bias.
    """

    decided_options = ("backend", "heads", "head_dim")
    cell_type: ClassVar[type[RecurrentCell]]

    def __init__(self, *, dim: int, bias: bool = True, **options: Any) -> None:
        super().__init__(backend="torch", dim=dim, heads=dim, head_dim=1, bias=bias, **options)

    def create_projections(self, bias: bool) -> None:
        self.cell = self.cell_type(self.dim, bias=bias)

    @property
    def position_dim(self) -> int:
        """Return the model's width: no encoding acts on heads, so theirs does not matter."""
        return self.dim

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        span = TokenSpan(mask, 0 if cache is None else cache.length)
        states = self.cell(x, span, None if cache is None else cache.state)
        if cache is not None:
            cache.state = last_states(states)
            cache.length += x.shape[1]
        return rearrange(states[0], "b t (h c) -> b h t c", c=1)

    def trace(self, x: Tensor, span: TokenSpan) -> Steps:
        """Return the implied steps [b h t …] of tokens x [b t d]."""
        return Steps._make(
            None if part is None else rearrange(part, "b t (h c) -> b h t c", c=1)
            for part in self.cell.trace(x, span)
        )

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        span = TokenSpan(mask)
        with autocast_disabled(x):
            steps = self.trace(x, span).use_unit_values().apply_mask(span)
            return decayed_product(steps)[0]

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return self.trace(source, TokenSpan(mask)).v

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return rearrange(attended, "b h t c -> b t (h c)").to(x.dtype)

    def state_size(self, tokens: int) -> int:
        return self.cell.num_states * self.dim

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        return self.cell.naive(x, visible)


def last_states(states: States) -> States:
    """Return the states [b d] after the last token, as copies: a slice would hold all of them."""
    return tuple(part[:, -1].clone() for part in states)


def run_steps(
    step: Callable[[States, Token], StepResult], states: States, parts: dict[str, Tensor]
) -> States:
    """Run steps over parts [b t n], and return the states after each, [b t d].

    When it is compiled, the loop is an operator of its own, so that any length has the same graph.
    """
    tokens = {name: part.transpose(0, 1) for name, part in parts.items()}
    if torch.compiler.is_compiling():
        _, outputs = scan(step, states, tokens)
        return tuple(part.transpose(0, 1) for part in outputs)
    results = []
    for token in zip(*(part.unbind(0) for part in tokens.values()), strict=True):
        states, _ = step(states, dict(zip(tokens, token, strict=True)))
        results.append(states)
    return tuple(torch.stack(part, dim=1) for part in zip(*results, strict=True))
