"""The contract of feature maps, and what several of them share."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attention_zoo.zoo import Role


class FeatureMap(nn.Module):
    """φ of linear attention: the weight of a key is φ(q)·φ(k) = κ(q, k), up to normalisation.

    A map overrides `map_queries`, and `map_keys` if keys differ; and for the naive form of
    attention `naive_features`, or `naive_kernel` if κ is a function of q·k alone.

    Args:
        heads: number of heads.
        head_dim: width of a head.
        role: of the attention.
    """

    # Whether an encoding rotates q and k, not φ(q) and φ(k). If κ is a function of q·k alone, it
    # then sees distances.
    rotate_inputs: ClassVar[bool] = False
    # Number of channels of a query or a key.
    input_dim: int
    # Number of features.
    num_features: int
    # The longest sequence that it can take, if it has a limit.
    max_length: int | None = None

    def __init__(self, *, heads: int, head_dim: int, role: Role) -> None:
        super().__init__()
        self.input_dim = self.num_features = head_dim

    def prepare_query(self, q: Tensor) -> Tensor:
        """Change queries [b h q c] before an encoding rotates them."""
        return q

    def prepare_key(self, k: Tensor) -> Tensor:
        """Change keys [b h k c] before an encoding rotates them."""
        return k

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        """Compute φ of prepared queries.

        Args:
            q: [b h q c].
            positions: [b|1 q]; None in cross-attention.

        Returns:
            [b h q f].
        """
        raise NotImplementedError

    def map_keys(self, k: Tensor, positions: Tensor | None) -> Tensor:
        """Compute φ of prepared keys, likewise."""
        return self.map_queries(k, positions)

    def naive_prepare(self, x: Tensor, of: Literal["query", "key"]) -> Tensor:
        """Prepare queries or keys [b h t c], as in the paper."""
        return x

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        """Compute φ of queries or keys [b h t c], as in the paper."""
        raise NotImplementedError

    def naive_kernel(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        """Compute κ of queries [b h q c] and keys [b h k c], as in the paper: [b h q k]."""
        features = self.naive_features(q, positions, "query")
        return features @ self.naive_features(k, positions, "key").transpose(-2, -1)


def squares(x: Tensor) -> Tensor:
    """Map [… c] to features [… c(c + 1)/2] whose product is the square of the product (x·y)².

    These are all products of two channels; those of different channels appear once, times √2.
    """
    channels = x.shape[-1]
    i, j = torch.triu_indices(channels, channels, 1, device=x.device)
    return torch.cat([x.square(), 2**0.5 * x[..., i] * x[..., j]], dim=-1)
