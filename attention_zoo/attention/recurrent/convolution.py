"""The short convolution before a recurrence."""

import torch
from torch import Tensor, nn

from attention_zoo.errors import UserError


class ShortConvolution(nn.Module):
    """Each channel mixes a token with the few before it, by weights of its own:

        y_t = Σ_{l < K} w_{K−1−l} ⊙ x_{t−l} + b

    What is before a sequence, and what is padded, counts as zeros.

    Args:
        channels: width of the tokens.
        kernel_size: K, the tokens that are mixed, oneself included.
        bias: whether there is a b.

    Raises:
        UserError: a kernel of no tokens.
    """

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__()
        if kernel_size < 1:
            raise UserError(f"kernel_size must be at least 1 (oneself), got {kernel_size}.")
        self.kernel_size = kernel_size
        # As torch.nn.Conv1d starts, of which every output has K inputs here.
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(channels, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(
        self,
        x: Tensor,
        *,
        state: Tensor | None = None,
        key_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix neighbouring tokens.

        Args:
            x: [b t d].
            state: [b d K−1], the tokens before x, as the last call returned them; None for nothing.
            key_mask: [b t] bool, True at real tokens of x. What comes out at the rest is of no use.
            segment_ids: [b t], or [b 1+t] with the last number before x in front, where there is a
                state: only tokens of the own segment count.

        Returns:
            [b t d], and the state behind x.
        """
        length, before = x.shape[1], self.kernel_size - 1
        if key_mask is not None:
            x = x.masked_fill(~key_mask[..., None], 0.0)
        if state is None:
            state = x.new_zeros(len(x), x.shape[2], before)
        tokens = torch.cat([state.transpose(1, 2), x], dim=1)
        numbers = None
        if segment_ids is not None:
            # A state holds nothing but tokens of the segment that it ends with.
            first, own = segment_ids[:, :1], segment_ids[:, -length:]
            numbers = torch.cat([first.expand(-1, before), own], dim=1)
        y = torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)
        for tap in range(self.kernel_size):
            part = tokens[:, tap : tap + length]
            if numbers is not None:
                same = numbers[:, tap : tap + length] == numbers[:, before:]
                part = part * same[..., None]
            y = y + self.weight[:, tap] * part
        kept = tokens[:, length:]
        if numbers is not None:
            kept = kept * (numbers[:, length:] == numbers[:, -1:])[..., None]
        # A copy: a slice would hold on to all of a long prompt.
        return y, kept.transpose(1, 2).clone()

    def naive(self, x: Tensor, visible: Tensor) -> Tensor:
        """The sum as it stands above, over the tokens that are visible [b t t]; for the tests."""
        y = torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)
        for lag in range(min(self.kernel_size, x.shape[1])):
            seen = visible.diagonal(-lag, dim1=1, dim2=2)[..., None]
            term = self.weight[:, -1 - lag] * x[:, : x.shape[1] - lag] * seen
            y = y + nn.functional.pad(term, (0, 0, lag, 0))
        return y
