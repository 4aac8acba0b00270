"""The short convolution before a recurrence."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_zoo.errors import check_positive
from attention_zoo.masks import TokenSpan


class ShortConvolution(nn.Module):
    """A causal convolution over tokens, of each channel by itself.

        y_t = Σ_{l < K} w_{K−1−l} ⊙ x_{t−l} + b

    K is `kernel_size`. Padded tokens, and those before the sequence, count as zeros.
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
        """Return how many numbers the state of a sequence has."""
        return self.channels * (self.kernel_size - 1)

    def taps(self) -> Sequence[Tensor | float]:
        """Return the weights [d] of the tokens in a window, the latest last."""
        return self.weight.unbind(1)

    def forward(
        self, x: Tensor, span: TokenSpan, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix neighbouring tokens x [b t d] of a segment; return y and the state after x.

        The state [b d K−1] holds the tokens before x, and is None at the start. The output at
        padded tokens has no meaning.
        """
        length, num_past = x.shape[1], self.kernel_size - 1
        if span.key_mask is not None:
            x = x.masked_fill(~span.key_mask[..., None], 0.0)
        if state is None:
            state = x.new_zeros(len(x), x.shape[2], num_past)
        tokens = torch.cat([state.transpose(1, 2), x], dim=1)
        segment_ids = span.segment_ids
        if segment_ids is not None:
            # A state holds only tokens of the segment that it ends with.
            before = segment_ids[:, :1].expand(-1, num_past)
            segment_ids = torch.cat([before, segment_ids[:, -length:]], dim=1)
        y = torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)
        for tap, weight in enumerate(self.taps()):
            part = tokens[:, tap : tap + length]
            if segment_ids is not None:
                same = segment_ids[:, tap : tap + length] == segment_ids[:, num_past:]
                part = part * same[..., None]
            y = y + weight * part
        state = tokens[:, length:]
        if segment_ids is not None:
            state = state * (segment_ids[:, length:] == segment_ids[:, -1:])[..., None]
        # A copy: a slice would keep all of a long prompt in memory.
        return y, state.transpose(1, 2).clone()

    def naive(self, x: Tensor, visible: Tensor) -> Tensor:
        """Compute the sum of the equation over visible tokens [b t t], for the tests."""
        y = torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)
        for lag in range(min(self.kernel_size, x.shape[1])):
            seen = visible.diagonal(-lag, dim1=1, dim2=2)[..., None]
            term = self.taps()[-1 - lag] * x[:, : x.shape[1] - lag] * seen
            y = y + nn.functional.pad(term, (0, 0, lag, 0))
        return y


class ConvolutionRunner:
    """A runner of convolutions over a span, from cached states on.

    There is a state for each convolution, in the order of the calls, or none at the start.
    """

    def __init__(self, span: TokenSpan, cached_states: tuple[Tensor, ...] = ()) -> None:
        self.span = span
        self.cached_states = cached_states
        self.states: tuple[Tensor, ...] = ()  # after the span

    def __call__(self, convolution: ShortConvolution, x: Tensor) -> Tensor:
        state = self.cached_states[len(self.states)] if self.cached_states else None
        y, state = convolution(x, self.span, state)
        self.states = (*self.states, state)
        return y
