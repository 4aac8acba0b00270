"""Attention by a state that decays: what its variants share."""

from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from attention_zoo.attention.base import Attention, resolve_positions
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.recurrence import decayed_product, unrolled_weights
from attention_zoo.caches import Cache, StateCache
from attention_zoo.masks import Mask

State = tuple[Tensor, ...]


class Heads(NamedTuple):
    """What the recurrence works on, in float32 at least."""

    q: Tensor  # [b h t c]
    k: Tensor  # [b h t c]
    v: Tensor  # [b h t e]
    decay: Tensor  # log a, [b|1 h t c|1]


class Span(NamedTuple):
    """What the mask says of some successive tokens."""

    key_mask: Tensor | None  # [b t]
    # [b t], or [b 1+t] with the number of the token before them in front, where there is one.
    segment_ids: Tensor | None

    def skip(self, heads: Heads) -> Heads:
        """Padded tokens neither add to the state nor decay it; it is empty where segments begin."""
        q, k, v, decay = heads
        if self.key_mask is not None:
            padded = ~self.key_mask[:, None, :, None]
            k, decay = k.masked_fill(padded, 0.0), decay.masked_fill(padded, 0.0)
        if self.segment_ids is not None:
            decay = decay.masked_fill(self.begins(q.shape[2])[:, None, :, None], float("-inf"))
        return Heads(q, k, v, decay)

    def begins(self, length: int) -> Tensor:
        """[b t], True where another segment ends before the token."""
        assert self.segment_ids is not None
        # Nothing ends before a row.
        numbers = torch.cat([self.segment_ids[:, :1], self.segment_ids], dim=1)[:, -length - 1 :]
        return numbers[:, 1:] != numbers[:, :-1]


class DecayedAttention(Attention):
    """A state of constant size takes in the tokens, and decays:

        S_t = diag(a_t) S_{t−1} + k_tᵀ v_t,   out_t = q_t S_t
        y_t = (norm(out_t) ⊙ swish(x_t W_G)) W_O

    with a norm for each head. Training runs over chunks; decoding is the same with chunks as they
    come. States and sums are kept in float32 at least. Subclasses give the heads, and the decay.

    Args:
        backend: `torch`; `fla`, the kernels of flash-linear-attention; or `auto`, which is `torch`.
    """

    decided_options = ("kv_heads",)
    backends: ClassVar[tuple[str, ...]] = kernels.CHOICES
    value_dim: int

    def __init__(self, *, backend: str = "auto", **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        self.backend = kernels.chosen(backend)
        self.set_value_dim(self.head_dim)

    def set_value_dim(self, width: int) -> None:
        """Let values, and the outputs of heads, have this width."""
        self.value_dim = width
        bias = self.query.bias is not None
        self.value = nn.Linear(self.dim, self.heads * width, bias=bias)
        self.gate = nn.Linear(self.dim, self.heads * width, bias=bias)
        self.output = nn.Linear(self.heads * width, self.dim, bias=bias)

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"e": self.value_dim}

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        mask = self.effective_mask(mask, x, context, cache)
        kernels.check(self.backend, mask, x)
        start, state = (0, None) if cache is None else (cache.length, cache.state)
        attended, state = self.attend(
            x, resolve_positions(x, positions, cache), span_of(mask, start), start, state
        )
        if cache is not None:
            cache.state = state
            cache.length += x.shape[1]
        return self.finish(attended, x)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the state implies, with length² work."""
        mask = self.effective_mask(mask, x, context)
        heads = self.heads_of(x, resolve_positions(x, positions, None), span_of(mask, 0))
        length = range(x.shape[1])
        visible = mask.dense(length, length, device=x.device)
        if visible is None:
            visible = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=x.device)
        return self.weights(heads, x, visible[:, 0])

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        return self.heads_of(x, resolve_positions(x, positions, None), span_of(mask, 0)).v

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        normed = layer_norm(attended, (self.value_dim,))
        gate = rearrange(self.gate(x), "b t (h e) -> b h t e", h=self.heads)
        return self.project_output((normed * silu(gate)).to(x.dtype))

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The recurrence unrolled: one sum over the visible keys for each query."""
        heads = self.naive_heads(x, resolve_positions(x, positions, None), visible)
        return self.finish(self.weights(heads, x, visible) @ heads.v, x)

    def empty_cache(self) -> Cache:
        return StateCache()

    def attend(
        self, x: Tensor, positions: Tensor, span: Span, start: int, state: State | None
    ) -> tuple[Tensor, State]:
        """[b h t e], of tokens that begin at the place `start`, and the state behind them."""
        return self.recur(self.heads_of(x, positions, span), x, span, start, state)

    def weights(self, heads: Heads, x: Tensor, visible: Tensor) -> Tensor:
        """[b h t t] of the keys that are visible [b|1 t t]."""
        return self.recurrent_weights(heads, x, visible)

    def recur(
        self, heads: Heads, x: Tensor, span: Span, start: int, state: State | None
    ) -> tuple[Tensor, State]:
        """The recurrence alone: q_t S_t [b h t e], and the state behind the last token."""
        # Sums of many terms lose too much in half precision.
        product = kernels.decayed_product if self.backend == "fla" else decayed_product
        with autocast_disabled(x):
            out, last = product(*span.skip(heads), None if state is None else state[0])
        return out, (last,)

    def recurrent_weights(self, heads: Heads, x: Tensor, visible: Tensor) -> Tensor:
        """The weights [b h t t] that the recurrence alone implies."""
        with autocast_disabled(x):
            return unrolled_weights(heads.q, heads.k, heads.decay, visible)

    def heads_of(self, x: Tensor, positions: Tensor, span: Span) -> Heads:
        """The heads of all tokens [b t d]."""
        q = self.project_query(x)
        k, v = self.project_key_value(x)
        q, k = self.position.rotate(q, k, positions)
        return Heads(upcast(q) * self.head_dim**-0.5, upcast(k), upcast(v), self.decay(x))

    def naive_heads(self, x: Tensor, positions: Tensor, visible: Tensor) -> Heads:
        """The same, where the span is told by what is visible [b t t]."""
        return self.heads_of(x, positions, Span(None, None))

    def decay(self, x: Tensor) -> Tensor:
        """Log a, [b|1 h t c|1], not above 0, in float32 at least."""
        raise NotImplementedError


def span_of(mask: Mask, start: int) -> Span:
    """Of the tokens that begin at the place `start`."""
    return Span(
        None if mask.key_mask is None else mask.key_mask[:, start:],
        None if mask.segment_ids is None else mask.segment_ids[:, max(start - 1, 0) :],
    )
