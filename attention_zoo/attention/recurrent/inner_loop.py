"""Attention by a small network that is trained on the tokens while it reads them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from attention_zoo.attention.recurrent.base import RecurrentAttention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.mini_batches import (
    MiniBatches,
    Parts,
    States,
    StepResult,
    find_mini_batches,
    run_mini_batches,
)
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled, upcast

Layers = tuple[Tensor, ...]  # a matrix [b h c e] for each layer of the inner network
GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


class Schedule(NamedTuple):
    """How the weights after each token of a mini-batch come from the gradients G of its tokens.

        W_i = first_i W' + second_i S' − Σ_j tokens_ij G_j,   S = kept S' − Σ_j added_j G_j

    with the states W' and S' before the mini-batch.
    """

    first: Tensor  # [… m 1]
    second: Tensor  # [… m 1]
    tokens: Tensor  # [b h m m], zero for a later token j
    kept: Tensor  # [… 1 1]
    added: Tensor  # [b h m 1]


class Trace(NamedTuple):
    """What a mini-batch reads and writes; the features are inputs of the network's last layer."""

    out: Tensor  # of the last layer, for queries, [… m c]
    query_features: Tensor  # [… m e]
    key_features: Tensor  # [… m e]
    gradients: Tensor  # of the losses by the outputs of the last layer, [… m c]


class InnerLayer(nn.Module):
    """The weights of a layer of the inner network at the start of a sequence."""

    def __init__(self, heads: int, inputs: int, outputs: int, *, std: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(heads, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(heads, 1, outputs)) if bias else None
        self.no_decay = ("bias",) if bias else ()

    def forward(self) -> Tensor:
        """Return the matrix [h c e], to which a bias adds a row."""
        weight = self.weight if self.bias is None else torch.cat([self.weight, self.bias], dim=-2)
        return upcast(weight)


class InnerLoopAttention(RecurrentAttention):
    """The state is a network f that descends the loss of every token while it reads.

        G_t = ∇_W ½ |f(k_t; W') − v_t|²,   out_t = f(q_t; W_t)

    The gradients of a mini-batch of tokens are those at the weights W' before it, so that they are
    products of matrices. The network is an MLP, after which a variant may do more. It creates the
    layers, and overrides `schedule`, `end_batch`, `full_schedule` and the naive form.

    Each weight of the attention map is how much the gradient of a token, by the output of the last
    layer, changes that output for the query. What the network returns without these changes, and
    what comes after its last layer, belong to `apply_weights`.

    Args:
        mini_batch_size: number of tokens whose gradients are taken at the same weights.
    """

    decided_options = ("backend",)
    # How many sets of weights the state has. The first are W', and the last two W and S; a set
    # after W starts from zero.
    num_sets: ClassVar[int]
    bias: ClassVar[bool]

    def __init__(self, *, mini_batch_size: int = 16, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        check_positive(mini_batch_size=mini_batch_size)
        self.mini_batch_size = mini_batch_size

    def create_layers(self, widths: list[int], stds: list[float]) -> None:
        """Create the network's layers between these widths."""
        self.layers = nn.ModuleList(
            InnerLayer(self.heads, inputs, outputs, std=std, bias=self.bias)
            for inputs, outputs, std in zip(widths[:-1], widths[1:], stds, strict=True)
        )

    def schedule(self, tokens: Parts) -> Schedule:
        """Compute how the tokens of a mini-batch change the weights."""
        raise NotImplementedError

    def end_batch(self, before: States, weights: Tensor, change: Tensor, full: Tensor) -> States:
        """Return the sets of a layer after a mini-batch.

        Args:
            before: the sets before it.
            weights: W after it.
            change: S after it.
            full: [b 1 1 1] bool, whether it has all its tokens.
        """
        raise NotImplementedError

    def full_schedule(
        self, steps: Steps, batches: MiniBatches, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute `first` [b h t 1] and `tokens` [b h t t] of `Schedule` for the whole row.

        They start from the start of the segment; visible is [b|1 1 t t], without padded queries.
        """
        raise NotImplementedError

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read the network; the states are its sets of weights [b h n], and a count [b]."""
        with autocast_disabled(x):
            trace, batches, states = self.run(steps, span, states)
            out = self.finish(batches.join(trace.out), steps.q)
        if span.key_mask is not None:
            out = out.masked_fill(~span.key_mask[:, None, :, None], 0.0)
        return out, states

    def run(
        self, steps: Steps, span: TokenSpan, states: tuple[Tensor, ...] = ()
    ) -> tuple[Trace, MiniBatches, tuple[Tensor, ...]]:
        """Train the network on the steps; return what all mini-batches [n …] read and write."""
        batch, _, length, _ = steps.q.shape
        device, count = steps.q.device, states[-1] if states else None
        batches = find_mini_batches(span, length, self.mini_batch_size, count, device)
        named = {"q": steps.q, "k": steps.k, "v": steps.v, "rate": steps.rate, "decay": steps.decay}
        parts = {name: batches.split(part) for name, part in named.items() if part is not None}
        parts["taken"] = batches.find_taken().expand(-1, batch, -1)
        if batches.starts is not None:
            parts["starts"] = batches.starts.movedim(1, 0).expand(-1, batch)
        start = self.start_states(batch)

        def step(before: States, tokens: Parts) -> StepResult:
            return self.step(start, before, tokens)

        before = self.unpack(states[:-1]) if states else start
        last, trace = run_mini_batches(step, before, parts)
        if batches.forgets is not None:
            last = choose(batches.forgets.expand(batch), start, last)
        return Trace(*trace), batches, (*self.pack(last), batches.num_open.expand(batch).clone())

    def start_states(self, batch: int) -> States:
        """Return the sets of weights at the start of a sequence, each with all layers."""
        layers = [layer().expand(batch, -1, -1, -1) for layer in self.layers]
        zeros = [torch.zeros_like(part) for part in layers]
        sets = [layers] * (self.num_sets - 1) + [zeros]
        return tuple(part.clone() for layers in sets for part in layers)

    def pack(self, sets: States) -> States:
        """Join the layers of each set to one tensor [b h n], for a cache."""
        depth = len(self.layers)
        return tuple(
            torch.cat([part.flatten(2) for part in sets[i : i + depth]], dim=-1)
            for i in range(0, len(sets), depth)
        )

    def unpack(self, packed: States) -> States:
        """Undo `pack`."""
        shapes = [layer().shape[1:] for layer in self.layers]
        sizes = [shape.numel() for shape in shapes]
        return tuple(
            layer.unflatten(-1, shape)
            for part in packed
            for layer, shape in zip(part.split(sizes, dim=-1), shapes, strict=True)
        )

    def step(self, start: States, sets: States, tokens: Parts) -> StepResult:
        """Train on a mini-batch; return the sets after it, and its trace."""
        if "starts" in tokens:
            sets = choose(tokens["starts"], start, sets)
        depth = len(self.layers)
        layers = [sets[i::depth] for i in range(depth)]  # of each layer, its sets
        inputs, gradients = self.compute_gradients(tokens, tuple(layer[0] for layer in layers))
        schedule = self.schedule(tokens)
        # The places are taken in order.
        full = tokens["taken"][:, -1, None, None, None]
        x, features = tokens["q"], tokens["q"]
        after: list[States] = []
        for layer, keys, gradient in zip(layers, inputs, gradients, strict=True):
            weights, change = layer[-2:]
            features = self.append_one(gelu(x, approximate="tanh") if after else x)
            x = schedule.first * (features @ weights) + schedule.second * (features @ change)
            x = x - (features @ keys.transpose(-2, -1) * schedule.tokens) @ gradient
            after.append(self.end_batch(layer, *update(schedule, layer, keys, gradient), full))
        trace = Trace(x, features, inputs[-1], gradients[-1])
        new_sets = tuple(part.clone() for parts in zip(*after, strict=True) for part in parts)
        return new_sets, tuple(part.clone() for part in trace)

    def compute_gradients(self, tokens: Parts, layers: Layers) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the inputs of each layer, and the gradients by its outputs, for keys."""
        k, v = tokens["k"], tokens["v"]
        inputs, outputs = [self.append_one(k)], []
        for layer in layers:
            outputs.append(inputs[-1] @ layer)
            inputs.append(self.append_one(gelu(outputs[-1], approximate="tanh")))
        gradients = [self.loss_gradient(outputs[-1], k, v)]
        for layer, output in zip(layers[:0:-1], outputs[-2::-1], strict=True):
            by_input = gradients[0] @ layer[..., : output.shape[-1], :].transpose(-2, -1)
            gradients.insert(0, by_input * gelu_derivative(output))
        return inputs[:-1], gradients

    def append_one(self, x: Tensor) -> Tensor:
        """Append the input of a bias, if the layers have one."""
        return pad(x, (0, 1), value=1.0) if self.bias else x

    def loss_gradient(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute the gradient of the loss by the output x of the last layer for k, [… m c]."""
        return x - v

    def finish(self, x: Tensor, q: Tensor) -> Tensor:
        """Compute what the network returns for q from the output x of its last layer, [b h t c]."""
        return x

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        trace, batches, _ = self.run(steps, span)
        _, weights = self.full_schedule(steps, batches, visible_pairs(span, x))
        queries, keys = batches.join(trace.query_features), batches.join(trace.key_features)
        return weights * (queries @ keys.transpose(-2, -1))

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Return the negative gradients, and what `apply_weights` needs of each query.

        This is what the last layer returns without them, the query, and 1 for a real token.
        """
        span = TokenSpan(mask)
        steps = self.project_steps(source, positions, ConvolutionRunner(span))
        with autocast_disabled(source):
            trace, batches, _ = self.run(steps, span)
            visible = visible_pairs(span, source)
            first, _ = self.full_schedule(steps, batches, visible)
            unchanged = first * (batches.join(trace.query_features) @ self.layers[-1]())
            real = visible.diagonal(dim1=-2, dim2=-1)[..., None].to(steps.q.dtype)
            real = real.expand_as(steps.q[..., :1])
            return torch.cat([-batches.join(trace.gradients), unchanged, steps.q, real], dim=-1)

    def apply_weights(self, weights: Tensor, values: Tensor) -> Tensor:
        """Add the changes to what the last layer returns without them."""
        width = self.head_dim
        changes, unchanged, q, real = values.split([width, width, width, 1], dim=-1)
        return real * self.finish(unchanged + weights @ changes, q)

    def state_size(self, tokens: int) -> int:
        return self.num_sets * sum(layer().numel() for layer in self.layers)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Differentiate the loss of each token, one after the other."""
        inputs = [part.transpose(1, 2) for part in self.naive_inputs(x, visible)]
        rows = []
        for b, seen in enumerate(visible):
            tokens = list(zip(*(part[b].unbind(0) for part in inputs), strict=True))
            rows.append(torch.stack([*self.naive_row(tokens, seen)], dim=1))
        return self.naive_output(torch.stack(rows), x)

    def naive_row(self, tokens: list[States], visible: Tensor) -> Iterator[Tensor]:
        """Yield the outputs [h c] of a row's tokens: q, k, v [h c], then rates [h 1]."""
        start = [part for layer in self.layers for part in layer.parameters()]
        for t, (q, k, v, *rates) in enumerate(tokens):
            if not visible[t, t]:
                yield torch.zeros_like(q)
                continue
            if not visible[t, :t].any():
                anchor, weights, count = start, start, 0
                change = [torch.zeros_like(part) for part in start]
            loss = (self.naive_network(k, anchor) - v).square().sum() / 2
            gradients = torch.autograd.grad(loss, anchor, create_graph=True)
            pairs = [
                self.naive_update(*parts, rates, count)
                for parts in zip(anchor, weights, change, gradients, strict=True)
            ]
            weights, change = map(list, zip(*pairs, strict=True))
            yield self.naive_network(q, weights)
            count += 1
            if count == self.mini_batch_size:
                anchor, count = weights, 0

    def naive_network(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Compute the network, [h c]."""
        y, step = x, 2 if self.bias else 1
        for i in range(0, len(weights), step):
            y = y if i == 0 else gelu(y, approximate="tanh")
            y = torch.einsum("h c, h c e -> h e", y, weights[i])
            y = y + weights[i + 1][:, 0] if self.bias else y
        return y

    def naive_inputs(self, x: Tensor, visible: Tensor) -> list[Tensor]:
        """Compute q, k, v [b h t c] and rates [b h t 1]."""
        raise NotImplementedError

    def naive_update(
        self,
        anchor: Tensor,
        weights: Tensor,
        change: Tensor,
        gradient: Tensor,
        rates: list[Tensor],
        place: int,
    ) -> tuple[Tensor, Tensor]:
        """Compute the weights and the change after a token, from those of the token before."""
        raise NotImplementedError

    def naive_output(self, attended: Tensor, x: Tensor) -> Tensor:
        """Compute the output [b t d] from what the network returns [b h t c]."""
        raise NotImplementedError


def update(
    schedule: Schedule, layer: States, keys: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute W and S of a layer after a mini-batch, from its sets before and its gradients."""
    weights, change = layer[-2:]
    written = keys.transpose(-2, -1) @ (schedule.tokens[..., -1, :, None] * gradient)
    first, second = schedule.first[..., -1:, :], schedule.second[..., -1:, :]
    added = keys.transpose(-2, -1) @ (schedule.added * gradient)
    return first * weights + second * change - written, schedule.kept * change - added


def choose(condition: Tensor, chosen: States, others: States) -> States:
    """Choose the states of the rows where the condition [b] holds, and the others elsewhere."""
    pairs = zip(chosen, others, strict=True)
    return tuple(torch.where(condition.view(-1, *(a.ndim - 1) * [1]), a, b) for a, b in pairs)


def gelu_derivative(x: Tensor) -> Tensor:
    """Compute the derivative of gelu(x, approximate="tanh")."""
    # It is constant beyond, and x³ would overflow.
    x = x.clamp(-10.0, 10.0)
    tanh = (GELU_SLOPE * (x + GELU_CUBE * x**3)).tanh()
    slope = GELU_SLOPE * (1 + 3 * GELU_CUBE * x**2)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * slope


def visible_pairs(span: TokenSpan, x: Tensor) -> Tensor:
    """Return [b|1 1 t t] bool, whether a real token sees another."""
    columns = torch.arange(x.shape[1], device=x.device)[None, None]
    visible = span.mask.gather(columns, columns, x.shape[1])
    return visible & visible.diagonal(dim1=-2, dim2=-1)[..., None]
