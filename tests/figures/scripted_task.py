"""A task with a fixed translation and fixed attention, in place of a trained one."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.decoding.base import Hypothesis
from attention_zoo.tasks.data.tokenizers import FIRST_ID, Tokenizer
from attention_zoo.tasks.views.attention_record import AttentionRecord

SOURCE = [b"Wednesday", b",", b" Mar", b"ch", b" ", b"4"]
TARGET = [b"quarta", b"-", b"feira", b",", b" ", b"4", b" de", b" mar\xc3", b"\xa7o"]


class PieceTokenizer(Tokenizer):
    """A tokenizer whose tokens are the given pieces, in order, after the special tokens."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(pieces)
        self.ids = list(range(FIRST_ID, FIRST_ID + len(pieces)))

    train = classmethod(lambda cls, lines: cls([]))

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {}


class ScriptedTask:
    """Like a `TranslationTask`, but source and translation are always the given pieces.

    Args:
        source, target: bytes of the pieces.
        layers: weights [h q k] of cross-attention; random, if not given.
    """

    def __init__(
        self,
        source: list[bytes] = SOURCE,
        target: list[bytes] = TARGET,
        layers: list[Tensor] | None = None,
    ) -> None:
        self.tokenizer = PieceTokenizer([*source, *target])
        self.source = self.tokenizer.ids[: len(source)]
        self.target = self.tokenizer.ids[len(source) :]
        shape = 4, len(target) + 1, len(source) + 1
        self.layers = layers or [(3 * torch.randn(shape)).softmax(-1) for _ in range(2)]

    def source_tokens(self, lines: list[str]) -> Tensor:
        return torch.tensor([[*self.source, self.tokenizer.eos_id] for _ in lines])

    def decode(self, source: Tensor) -> list[list[Hypothesis]]:
        return [[Hypothesis(self.target, 0.0)] for _ in source]

    def attend(self, line: str) -> AttentionRecord:
        tokens = self.tokenizer.tokens
        return AttentionRecord(
            [*tokens(self.source), "<eos>"], [*tokens(self.target), "<eos>"], {"cross": self.layers}
        )
