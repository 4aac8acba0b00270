"""The contract of positional encodings: hooks, neutral unless an encoding overrides them."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from attention_zoo.zoo import PositionCard, Role


class ScoreInputs(NamedTuple):
    """Queries, and the keys that they are compared with."""

    q: Tensor  # [b h q c], with all that `rotate` did to them
    k: Tensor  # [b h k c], likewise
    q_positions: Tensor  # [b|1 q]
    k_positions: Tensor  # [b|1 k]
    visible: Tensor | None  # [b|1 1 q k], True where a query sees a key; None where all is visible
    scale: float  # of the attention's scores, q·k·scale
    kept: Mapping[str, Tensor]  # of every key, what `cached_features` gave


class PositionalEncoding(nn.Module):
    """Tells attention where tokens stand.

    One encoding serves a whole stack of layers, or one layer, where the card says `per_layer`. The
    card also says which hooks it has: `map_positions` acts on positions, `embed` on embeddings, `rotate` on
    heads and their width, `rotate_by_length` on heads by the length, `bias` on scores, `content_bias` on scores by
    their content, `value_bias` on values.

    Positions are integers, [b t], or [1 t] where all rows share them.

    Args:
        dim: width of the embeddings.
        heads, head_dim: number and width of the attention's heads.
        role: of the attention.
        layer: place of the layer in the stack, from 0, for an encoding of its own.
    """

    # The class's; an instance that hands its work on to another encoding has a card of its own.
    card: PositionCard = PositionCard(name="none", paper="", equation="", reference="")
    # The most tokens that it can take, if it has a limit.
    max_length: int | None = None

    def __init__(self, *, dim: int, heads: int, head_dim: int, role: Role, layer: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.heads = heads
        self.head_dim = head_dim
        self.role = role
        self.layer = layer

    def map_positions(self, positions: Tensor) -> Tensor:
        """On positions, before a model's layers: [b|1 t] -> [b|1 t]."""
        return positions

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """On embeddings: [b t d] -> [b t d]."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """On heads: q [b h t c] and k [b g t c] of the same tokens. A cache keeps the result."""
        return q, k

    def length_spans(self, q_positions: Tensor) -> list[slice]:
        """Neighbouring queries for which the keys are turned alike, for an encoding that acts by
        the length: before each run, `rotate_by_length` is called with its queries and all keys up to the last
        of them. A cache keeps keys that are not turned.
        """
        return [slice(0, q_positions.shape[1])]

    def rotate_by_length(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """On heads by the length: queries [b h q c] of a run, and the keys [b g k c] up to them."""
        return q, k

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """On scores, by places alone: what to add, [b|1 h q k], or None."""
        return None

    def cached_features(self, x: Tensor) -> dict[str, Tensor]:
        """What `content_bias` needs of every token x [b k d], beside its key: [b … k c] under names."""
        return {}

    def content_bias(self, pairs: ScoreInputs) -> Tensor | None:
        """On scores, by content: what to add to q·k·scale, [b h q k], or None."""
        return None

    def value_bias(
        self, weights: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> Tensor | None:
        """On values: what the weights [b h q k] add up to beside the values, [b h q c], or None."""
        return None
