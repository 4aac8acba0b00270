"""What a user writes, for type checkers alone: tests/packaging/test_wheel.py runs them on it."""

from typing import assert_type

import torch
from torch import Tensor, nn

import attention_zoo
from attention_zoo import AttentionCard, Mask, PositionCard, create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks import load


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.attention = create_attention(
            "sliding_window", dim=dim, heads=4, window=128, position="rotary", role="causal"
        )

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        update: Tensor = self.attention(self.norm(x), mask=Mask(key_mask=key_mask))
        return x + update


block, x = Block(64), torch.randn(2, 10, 64)
assert_type(block.attention, Attention)
assert_type(block.attention.attention_map(x), Tensor)
alibi = create_position("alibi", dim=64, heads=4, head_dim=16, role="causal")
assert_type(alibi, PositionalEncoding)
assert_type(attention_zoo.ATTENTION.card("linear"), AttentionCard)
assert_type(attention_zoo.POSITION.card("alibi"), PositionCard)
assert_type(attention_zoo.list_attention(), list[str])
assert_type(attention_zoo.__version__, str)
roles: tuple[str, ...] = attention_zoo.card("alibi").roles
translations: list[str] = load("model.ckpt").generate(["Wednesday, March 4, 2026"])
