"""Learned absolute positions (Gehring et al. 2017)."""

from typing import Any

from torch import Tensor, nn

from attention_zoo.errors import UserError, check_positive
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tensor_checks import is_readable
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="learned",
    also_called=("absolute",),
    paper="Gehring et al. 2017, arXiv 1705.03122, §3.1; Vaswani et al. 2017, §3.5",
    equation="x_t + P_t",
    reference="transformers GPT2Model",
    acts=("embeddings",),
)
class LearnedEncoding(PositionalEncoding):
    """x_t + P_t with a table P of `max_length` rows, and no row beyond.

    Args:
        max_length: the longest sequence, in tokens. A longer one is refused.
    """

    max_length: int

    def __init__(self, *, max_length: int, **sizes: Any) -> None:
        super().__init__(**sizes)
        check_positive(max_length=max_length)
        self.max_length = max_length
        self.table = nn.Embedding(max_length, self.dim)
        # Half the embeddings' own deviation, the proportion of GPT-2 (0.01 beside 0.02).
        nn.init.normal_(self.table.weight, std=0.5)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        self.check_embeddings(x, positions)
        check_length(self, positions)
        return x + self.table(positions)


def check_length(encoding: PositionalEncoding, positions: Tensor) -> None:
    """Refuse positions beyond the encoding's longest sequence."""
    if not is_readable(positions) or not positions.numel():
        return
    first, last = (int(end) for end in positions.aminmax())
    if first < 0:
        raise UserError(
            f"position={encoding.card.name} needs positions of at least 0, got {first}."
        )
    if encoding.max_length is not None and last >= encoding.max_length:
        raise UserError(
            f"position={encoding.card.name} has max_length={encoding.max_length}, got a sequence "
            f"of {last + 1} tokens. Train with a larger position.max_length, or choose an encoding "
            "without a limit."
        )
