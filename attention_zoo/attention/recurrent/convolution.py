"""The short convolution before a recurrence."""

from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention_zoo.custom_gradients import allows_custom_gradients, differentiate, needs_formula
from attention_zoo.errors import check_positive
from attention_zoo.masks import TokenSpan, gather_broadcast, order_real_first


class StatefulLayer(nn.Module):
    """A layer before a recurrence, over tokens and a state of constant size."""

    @property
    def state_size(self) -> int:
        """Return how many numbers the state of a sequence has."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, span: TokenSpan, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map tokens x [b t d] after a state, None at the start; return y and the state after x."""
        raise NotImplementedError


class ShortConvolution(StatefulLayer):
    """A causal convolution over tokens, of each channel by itself.

        y_t = Σ_{l < K} w_{K−1−l} ⊙ x_{t−l} + b

    K is `kernel_size`. Padded tokens are left out, and those before the sequence count as zeros.
    """

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__()
        check_positive(kernel_size=kernel_size)
        self.channels = channels
        self.kernel_size = kernel_size
        # The start of torch.nn.Conv1d: every output has K inputs here.
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(channels, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    @property
    def state_size(self) -> int:
        return self.channels * (self.kernel_size - 1)

    def taps(self) -> Sequence[Tensor | float]:
        """Return the weights [d] of the tokens in a window, the latest last."""
        return self.weight.unbind(1)

    def sum_windows(self, tokens: Tensor, segment_ids: Tensor | None) -> Tensor:
        """Return y [b t d] of tokens [b K−1+t d], whose segments are [b K−1+t], if there are any.

        Only tokens of its own segment count for each.
        """
        taps = self.weight.T.contiguous()  # A product with a strided row takes five times as long.
        y = convolve(tokens, taps, segment_ids)
        return y if self.bias is None else y + self.bias

    def forward(
        self, x: Tensor, span: TokenSpan, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix neighbouring tokens x [b t d] of a segment; return y and the state after x.

        The state [b d K−1] holds the tokens before x, and is None at the start. The output at
        padded tokens has no meaning.
        """
        length, num_past = x.shape[1], self.kernel_size - 1
        segment_ids, order = span.segment_ids, None
        if span.key_mask is not None:
            # Padding is moved to the end, so that the neighbours of a real token are real.
            order = order_real_first(span.key_mask)
            x = x.masked_fill(~span.key_mask[..., None], 0.0)
            x = gather_broadcast(x, order[..., None], 1)
        if state is None:
            state = x.new_zeros(len(x), x.shape[2], num_past)
        tokens = torch.cat([state.transpose(1, 2), x], dim=1)
        if segment_ids is not None:
            # A state holds only tokens of the segment that it ends with.
            before, last = segment_ids[:, :1].expand(-1, num_past), segment_ids[:, -1:]
            segment_ids = segment_ids[:, -length:]
            if order is not None:
                segment_ids = gather_broadcast(segment_ids, order, 1)
            segment_ids = torch.cat([before.expand(len(segment_ids), -1), segment_ids], dim=1)
        y = self.sum_windows(tokens, segment_ids)
        state = tokens[:, length:]
        ids_of_state = None if segment_ids is None else segment_ids[:, length:]
        if order is not None:
            y = gather_broadcast(y, order.argsort(dim=1)[..., None], 1)
            # The tokens up to the last real one.
            assert span.key_mask is not None
            columns = torch.arange(num_past, device=x.device)
            columns = columns + span.key_mask.sum(dim=1, keepdim=True)
            state = gather_broadcast(tokens, columns[..., None], 1)
            if segment_ids is not None:
                ids_of_state = gather_broadcast(segment_ids, columns, 1)
        if ids_of_state is not None:
            state = state * (ids_of_state == last)[..., None]
        # A copy: a slice would keep all of a long prompt in memory.
        return y, state.transpose(1, 2).clone()

    def naive(self, x: Tensor, visible: Tensor) -> Tensor:
        """Compute the sum of the equation over visible tokens [b t t], for the tests."""
        y = torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)
        y = y.clone()
        for b, t in product(*map(range, x.shape[:2])):
            seen = visible[b, t, : t + 1].nonzero()[:, 0]
            for lag, s in enumerate(seen.flip(0)[: self.kernel_size]):
                y[b, t] += self.taps()[-1 - lag] * x[b, s]
        return y


class TokenShift(ShortConvolution):
    """A convolution that returns the token before each: of two tokens, with the weights 1 and 0."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2)
        del self.weight

    def taps(self) -> tuple[float, float]:
        return 1.0, 0.0

    def sum_windows(self, tokens: Tensor, segment_ids: Tensor | None) -> Tensor:
        before = tokens[:, :-1]
        if segment_ids is None:
            return before
        return before * (segment_ids[:, :-1] == segment_ids[:, 1:])[..., None]


def convolve(tokens: Tensor, taps: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """Return Σ_i taps_i ⊙ tokens_{t+i} [b t d], for tokens [b K−1+t d] and taps [K d]."""
    if segment_ids is None and allows_custom_gradients(tokens, taps):
        return cast(Tensor, Convolution.apply(tokens, taps))
    return sum_taps(tokens, taps, segment_ids)


def sum_taps(tokens: Tensor, taps: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """Compute `convolve` by operations of PyTorch."""
    num_past = len(taps) - 1
    length = tokens.shape[1] - num_past
    total = torch.zeros_like(tokens[:, num_past:])
    for i, tap in enumerate(taps.unbind()):
        window = tokens[:, i : i + length]
        if segment_ids is not None:
            same = segment_ids[:, i : i + length] == segment_ids[:, num_past:]
            window = window * same[..., None]
        total = total + tap * window
    return total


class Convolution(torch.autograd.Function):
    """`sum_taps` with a gradient that is summed up in place."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, taps)
        length = tokens.shape[1] - len(taps) + 1
        total = tokens[:, :length] * taps[0]
        for i in range(1, len(taps)):
            total.addcmul_(tokens[:, i : i + length], taps[i])
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, taps = ctx.saved_tensors
        if needs_formula(gradient):
            return differentiate(
                lambda *x: (sum_taps(*x),), (tokens, taps), (gradient,), ctx.needs_input_grad
            )
        of_tokens, of_taps = torch.zeros_like(tokens), torch.empty_like(taps)
        length = gradient.shape[1]
        term = torch.empty_like(gradient)
        for i, tap in enumerate(taps):
            of_tokens[:, i : i + length].addcmul_(gradient, tap)
            torch.mul(gradient, tokens[:, i : i + length], out=term)
            of_taps[i] = term.sum((0, 1))
        return of_tokens, of_taps


class ConvolutionRunner:
    """A runner of convolutions, and layers alike, over a span, from cached states on.

    There is a state for each layer, in the order of the calls, or none at the start.
    """

    def __init__(self, span: TokenSpan, cached_states: tuple[Tensor, ...] = ()) -> None:
        self.span = span
        self.cached_states = cached_states
        self.states: tuple[Tensor, ...] = ()  # after the span

    def __call__(self, layer: StatefulLayer, x: Tensor) -> Tensor:
        state = self.cached_states[len(self.states)] if self.cached_states else None
        y, state = layer(x, self.span, state)
        self.states = (*self.states, state)
        return y
