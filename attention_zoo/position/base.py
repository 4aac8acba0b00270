"""The contract of positional encodings: three hooks, neutral unless an encoding overrides them."""

from typing import ClassVar

from torch import Tensor, nn

from attention_zoo.zoo import PositionCard


class PositionalEncoding(nn.Module):
    """Tells attention where tokens stand. One encoding serves a whole stack of layers.

    Positions are integers, [b t], or [1 t] where all rows share them.
    """

    card: ClassVar[PositionCard] = PositionCard(
        name="none", paper="", equation="", reference="", acts="nowhere"
    )
    max_length: int | None = None

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """On embeddings: [b t d] -> [b t d]."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """On heads: q [b h t c] and k [b g t c] of the same tokens."""
        return q, k

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """On scores: what to add, [b|1 h q k], or None."""
        return None
