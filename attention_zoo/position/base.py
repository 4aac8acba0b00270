"""The contract of positional encodings: hooks that are neutral unless overridden."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo.errors import UserError, check_not_negative, check_positive
from attention_zoo.zoo import ROLES, PositionCard, Role


class ScoreInputs(NamedTuple):
    """Queries, and the keys that they are scored with."""

    q: Tensor  # [b h q c], as `rotate` left them
    k: Tensor  # [b h k c], likewise
    q_positions: Tensor  # [b|1 q]
    k_positions: Tensor  # [b|1 k]
    visible: Tensor | None  # [b|1 1 q k], True where a query sees a key; None where all is visible
    scale: float  # of the attention's scores, q·k·scale
    features: Mapping[str, Tensor]  # of every key, from `cached_features`


class NaiveScoreInputs(NamedTuple):
    """One query, and the keys that it sees."""

    query: Tensor  # [c], as `naive_rotate` left it
    keys: Tensor  # [k c], likewise
    q_position: Tensor  # []
    k_positions: Tensor  # [k]
    head: int  # index of the query head
    scale: float  # of the attention's scores
    tokens: Tensor  # [k d], inputs of the keys
    all_queries: Tensor  # [h c], the query of every head, as `naive_rotate` left it
    all_keys: Tensor  # [h k c], likewise

    @property
    def distances(self) -> Tensor:
        """Return the signed distance from each key to the query, t − s, [k]."""
        return (self.q_position - self.k_positions).to(self.query.dtype)


class PositionalEncoding(nn.Module):
    """Tells attention where tokens stand.

    One encoding serves a whole stack of layers, or one layer, where the card says `per_layer`. The
    card also says which hooks an encoding has: `map_positions` acts on positions, `embed` on
    embeddings, `rotate` on heads and their width, `rotate_by_length` on heads by the length,
    `score_bias` on scores, `content_bias` on scores by their content, `value_bias` on values. The
    `naive_…` methods say the same as the paper does, for one query, and share nothing with them.

    Positions are integers, [b t], or [1 t] where all rows share them.

    Args:
        dim: width of the embeddings.
        heads: number of the attention's heads.
        head_dim: width of a head.
        role: of the attention.
        layer: index of the layer in its stack, from 0, for an encoding of one layer.
    """

    # The class's card; an encoding that wraps another one has a card of its own.
    card: PositionCard = PositionCard(name="none", paper="", equation="", reference="")
    # The longest sequence that it can take, if it has a limit.
    max_length: int | None = None
    typed: Tensor
    # Names of own parameters that are gains or biases, whatever their shape: without weight decay.
    no_decay: ClassVar[tuple[str, ...]] = ()
    # What `rotate` multiplies queries and keys by, so that scores get its square.
    magnitude: float = 1.0

    def __init__(self, *, dim: int, heads: int, head_dim: int, role: Role, layer: int = 0) -> None:
        super().__init__()
        check_positive(dim=dim, heads=heads, head_dim=head_dim)
        check_not_negative(layer=layer)
        if role not in ROLES:
            raise UserError(f"role must be one of {', '.join(ROLES)}, got {role!r}.")
        self.dim = dim
        self.heads = heads
        self.head_dim = head_dim
        self.role = role
        self.layer = layer
        # Whether an attention owns it.
        self.is_attached = False
        # Empty: it has the type that a module without parameters was converted to.
        self.register_buffer("typed", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type to compute in: that of the module, float32 at least."""
        return torch.promote_types(self.typed.dtype, torch.float32)

    @property
    def content_magnitude(self) -> float:
        """Return what queries and keys are multiplied by where a mechanism keeps them unrotated."""
        return self.magnitude

    def map_positions(self, positions: Tensor) -> Tensor:
        """Map positions [b|1 t] to others, before a model's layers."""
        return positions

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add positions to embeddings [b t d]."""
        return x

    def check_embeddings(self, x: Tensor, positions: Tensor) -> None:
        """Raise UserError for embeddings that are not [b t dim] of positions [b|1 t]."""
        is_fitting = x.ndim == 3 and x.shape[2] == self.dim
        if not is_fitting or positions.shape not in (x.shape[:2], (1, x.shape[1])):
            raise UserError(
                f"position={self.card.name} adds to embeddings [b t {self.dim}] at positions [b t] "
                f"or [1 t], got {list(x.shape)} and {list(positions.shape)}."
            )

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate heads q [b h t c] and k [b g t c] of the same tokens. A cache keeps the result."""
        return q, k

    def rotate_back(self, x: Tensor, positions: Tensor) -> Tensor:
        """Multiply heads [b h t c] by the transpose of what `rotate` multiplies queries by.

        For values that were rotated as keys: what they contribute then depends on distances, as
        scores do. An encoding that turns pairs of channels knows a faster way.
        """
        if "heads" not in self.card.acts:
            return x
        units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)[None, :, None]
        units = units.expand(len(positions), -1, x.shape[2], -1)
        columns, _ = self.rotate(units, units[:, :0], positions)
        return torch.einsum("b i t c, b h t c -> b h t i", columns, x)

    def length_spans(self, q_positions: Tensor) -> list[slice]:
        """Split queries into spans of neighbours that rotate the keys alike.

        For an encoding that acts by the length: `rotate_by_length` is called for each span, with
        its queries and all keys up to the last of them. A cache keeps keys that are not rotated.
        """
        return [slice(0, q_positions.shape[1])]

    def rotate_by_length(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries [b h q c] of a span, and the keys [b g k c] up to them."""
        return q, k

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """Return what to add to the scores by positions alone, [b|1 h q k], or None."""
        return None

    def cached_features(self, x: Tensor) -> dict[str, Tensor]:
        """Return what `content_bias` needs of every token x [b k d] besides its key, [b … k c]."""
        return {}

    def content_bias(self, inputs: ScoreInputs) -> Tensor | None:
        """Return what to add to q·k·scale by content, [b h q k], or None."""
        return None

    def value_bias(
        self, weights: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> Tensor | None:
        """Return what to add to the values' sums for weights [b h q k], [b h q c], or None."""
        return None

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        """Rotate a query, or keys, [… c] at positions […].

        `head` is the index of the query head, `length` the number of tokens up to the query.
        """
        return x

    def naive_magnitude(self) -> float:
        """Return what `naive_rotate` multiplies queries and keys by."""
        return 1.0

    def naive_content_magnitude(self) -> float:
        """Return what queries and keys are multiplied by where a mechanism keeps them unrotated."""
        return self.naive_magnitude()

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor | float:
        """Return what to add to the scores [k] of one query and the keys that it sees."""
        return 0.0

    def naive_values(self, q_position: Tensor, k_positions: Tensor) -> Tensor | float:
        """Return what to add to the values [k c] that a query sees."""
        return 0.0


def check_base(base: float) -> None:
    """Refuse a base of wavelengths from 2π to base·2π tokens that does not make them grow."""
    if base <= 1:
        raise UserError(f"base must be above 1, got {base}.")
