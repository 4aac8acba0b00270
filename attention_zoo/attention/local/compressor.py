"""Compression of blocks of tokens to one entry each, by gates for every channel."""

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.online_softmax import gather_tokens
from attention_zoo.precision import upcast


class BlockCompressor(nn.Module):
    """Compresses each block of m tokens to one entry, a mean with weights for every channel.

        C = norm(Σ_j softmax_j(Z_j + B_j) ⊙ V_j),   V_j = x_j W_V,   Z_j = x_j W_Z

    over the tokens j of the block. B, which starts with zeros, has a row for each place in a block.

    With overlap, the sum is also over the tokens of the block before, which have projections and a
    B of their own. The first block of a sequence has none before it.

    Args:
        dim: width of the tokens.
        width: of an entry.
        block: m, the number of tokens in a block.
        overlap: whether an entry is also made of the block before its own.
        bias: whether the projections have a bias.
    """

    no_decay = ("position_bias",)

    def __init__(self, dim: int, width: int, *, block: int, overlap: bool, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.block = block
        self.overlap = overlap
        # With overlap, the first half is for the block after the token's own.
        total = 2 * width if overlap else width
        self.value = nn.Linear(dim, total, bias=bias)
        self.gate = nn.Linear(dim, total, bias=bias)
        self.position_bias = nn.Parameter(torch.zeros(block, total))
        self.norm = RMSNorm(width)

    @property
    def span(self) -> int:
        """Return the number of tokens that an entry is made of."""
        return 2 * self.block if self.overlap else self.block

    @property
    def num_features(self) -> int:
        """Return the width of what `project` returns of a token."""
        return 2 * self.value.out_features

    def project(self, x: Tensor) -> Tensor:
        """Project tokens [b t d] to what entries are made of, [b 1 t f]."""
        return torch.cat([self.value(x), self.gate(x)], dim=-1)[:, None]

    def forward(self, features: Tensor, ends: Tensor, starts: Tensor) -> Tensor:
        """Compress blocks.

        Args:
            features: of tokens, from `project`, [b 1 n f].
            ends: [b|1 s], the index of the last token of each block. Indices outside the tokens
                give some entry.
            starts: [b|1 s], the index of the first token of the block's sequence.

        Returns:
            [b 1 s c].
        """
        steps = torch.arange(1 - self.span, 1, device=ends.device)
        tokens = ends[..., None] + steps
        values, gates = gather_tokens(features, tokens).chunk(2, dim=-1)
        bias = self.position_bias.repeat(self.span // self.block, 1)
        gates = self.select_series(upcast(gates) + bias)
        if self.overlap:
            is_own = steps > -self.block
            exists = is_own | (tokens >= starts[..., None])
            gates = gates.masked_fill(~exists[:, None, ..., None], float("-inf"))
        weights = gates.softmax(dim=-2).to(values.dtype)
        return self.norm((weights * self.select_series(values)).sum(dim=-2))

    def select_series(self, x: Tensor) -> Tensor:
        """Return the half of x [… 2m 2c] for each block, the first for the one before: [… 2m c]."""
        if not self.overlap:
            return x
        before, own = x.split(self.block, dim=-2)
        return torch.cat([before[..., : self.width], own[..., self.width :]], dim=-2)

    def naive(self, x: Tensor) -> Tensor:
        """Compress the whole blocks of a sequence [n d], channel by channel: [s c]."""
        values, gates = naive.linear(self.value, x), naive.linear(self.gate, x)
        entries = []
        for end in range(self.block, len(x) + 1, self.block):
            tokens = range(max(end - self.span, 0), end)
            channels = []
            for channel in range(self.width):
                # Of a token of the block before: of the first half of the channels.
                own = channel + (self.width if self.overlap else 0)
                pairs = [(j, own if j >= end - self.block else channel) for j in tokens]
                z = torch.stack(
                    [gates[j, c] + self.position_bias[j % self.block, c] for j, c in pairs]
                )
                powers = torch.exp(z - z.max())
                v = torch.stack([values[j, c] for j, c in pairs])
                channels.append((powers / powers.sum()) @ v)
            entries.append(torch.stack(channels))
        if not entries:
            return x.new_zeros(0, self.width)
        return naive.rms_norm(torch.stack(entries), self.norm.weight, epsilon=1e-6)
