"""The contract of feature maps, and the attention whose weights are products of features."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_zoo.attention import naive
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.caches import Cache, StateCache
from attention_zoo.masks import Columns, Mask, TokenSpan, find_segment_starts
from attention_zoo.precision import autocast_disabled, safe_divide, upcast
from attention_zoo.zoo import ATTENTION, ROLES, Role

# Registers kernel attention by the fields of its card that differ from these.
register_kernel = partial(
    ATTENTION.register,
    roles=ROLES,
    masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
    positions=("positions", "embeddings", "heads"),
    cache="sums of φ(k)ᵀv and φ(k)",
    cost="t",
)


class FeatureMap(nn.Module):
    """φ of linear attention: the weight of a key is φ(q)·φ(k) = κ(q, k), up to normalisation.

    A map overrides `map_queries`, and `map_keys` if keys differ; and for the naive form of
    attention `naive_features`, or `naive_kernel` if κ is a function of q·k alone.
    """

    # Whether an encoding rotates q and k, not φ(q) and φ(k). If κ is a function of q·k alone, it
    # then sees distances.
    rotate_inputs: ClassVar[bool] = False
    input_dim: int  # channels of a query or a key
    num_features: int
    max_length: int | None = None  # the longest sequence that it can take, if it has a limit

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
        """Compute φ [b h q f] of queries [b h q c] at positions [b|1 q] (None for cross)."""
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


# Called with `heads`, `head_dim` and `role`.
FeatureMapFactory = Callable[..., FeatureMap]


class Features(NamedTuple):
    """Features of queries and keys, and values; features of padded keys are zero."""

    q: Tensor  # [b h q f]
    k: Tensor  # [b h k f]
    rotated_q: Tensor  # by the encoding, for the numerator
    rotated_k: Tensor
    v: Tensor  # [b h k c]


class KernelAttention(Attention):
    """Attention with weights φ(q_i)·φ(k_j), whose sums over keys need no weights: see `linear`.

    A variant chooses the feature map φ.
    """

    decided_options = ("kv_heads",)

    def __init__(self, *, feature_map: FeatureMapFactory, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        self.feature_map = feature_map(heads=self.heads, head_dim=self.head_dim, role=self.role)
        self.max_length = self.feature_map.max_length
        if self.feature_map.input_dim != self.head_dim:
            width, bias = self.heads * self.feature_map.input_dim, self.query.bias is not None
            self.query, self.key = (nn.Linear(self.dim, width, bias=bias) for _ in range(2))

    @property
    def position_dim(self) -> int:
        feature_map = self.feature_map
        return feature_map.input_dim if feature_map.rotate_inputs else feature_map.num_features

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        if context is not None and cache is not None:
            return self.attend_cached_context(x, context, mask, cache)
        span = TokenSpan(mask, 0 if cache is None else cache.length)
        features = self.project_features(x, x if context is None else context, span, positions)
        with autocast_disabled(x):
            return self.attend(features, span, cache)

    def project_query(self, x: Tensor) -> Tensor:
        return upcast(super().project_query(promote(x, self.query.weight)))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().project_key_value(promote(source, self.key.weight))
        return upcast(k), upcast(v)

    def project_features(
        self, x: Tensor, source: Tensor, span: TokenSpan, positions: Tensor | None
    ) -> Features:
        """Project x to features of queries, and the source to those of keys and to values."""
        feature_map = self.feature_map
        if self.role == "cross":
            positions = None
        # Features may be steep, and weights are their quotients, which magnify rounding errors.
        with autocast_disabled(x):
            q = self.project_query(x)
            k, v = self.project_key_value(source)
            q, k = feature_map.prepare_query(q), feature_map.prepare_key(k)
            if positions is not None and feature_map.rotate_inputs:
                q, k = self.position.rotate(q, k, positions)
            q, k = feature_map.map_queries(q, positions), feature_map.map_keys(k, positions)
            if span.key_mask is not None:
                k = k * span.key_mask[:, None, :, None]
            if positions is None or feature_map.rotate_inputs:
                return Features(q, k, q, k, v)
            return Features(q, k, *self.position.rotate(q, k, positions), v)

    def attend(self, features: Features, span: TokenSpan, cache: StateCache | None) -> Tensor:
        """Compute the weighted means [b h q c]; the cache takes in the sums of the keys."""
        q, k, rotated_q, rotated_k, v = features
        mask = span.mask
        if not mask.causal and mask.query_segment_ids is not None:
            return self.weights(features, mask) @ v
        # The sum of the weights is the mean's denominator: that of values of 1.
        if rotated_q is q and rotated_k is k:
            sums = [(q, k, pad(v, (0, 1), value=1.0))]
        else:
            sums = [(rotated_q, rotated_k, v), (q, k, torch.ones_like(v[..., :1]))]
        if mask.causal:
            states = [None] * len(sums) if cache is None or cache.state is None else cache.state
            results = [
                causal_product(*parts, state, span.segment_starts)
                for parts, state in zip(sums, states, strict=True)
            ]
            out = torch.cat([result for result, _ in results], dim=-1)
            if cache is not None:
                cache.state = tuple(state for _, state in results)
                cache.length += k.shape[2]
        else:
            out = torch.cat([global_product(*parts, mask.segment_ids) for parts in sums], dim=-1)
        return safe_divide(out[..., :-1], out[..., -1:])

    def attend_cached_context(
        self, x: Tensor, context: Tensor, mask: Mask, cache: StateCache
    ) -> Tensor:
        """Compute the means [b h q c] by the sums of each sequence of the context.

        The cache keeps the sums; the context is read the first time only.
        """
        with autocast_disabled(x):
            if cache.state is None:
                _, k, _, _, v = self.project_features(x, context, TokenSpan(mask), None)
                segment_ids = segment_ids_or_zeros(mask.segment_ids, k)
                numbers = segment_ids.unique().expand(len(x), -1)
                members = (segment_ids[..., None] == numbers[:, None]).to(k.dtype)
                kv_state = torch.einsum("b k s, b h k f, b h k c -> b s h f c", members, k, v)
                k_state = torch.einsum("b k s, b h k f -> b s h f", members, k)
                cache.state = kv_state, k_state, numbers
                cache.length = k.shape[2]
            kv_state, k_state, numbers = cache.state
            q = self.feature_map.prepare_query(self.project_query(x))
            q = self.feature_map.map_queries(q, None)
            segment_ids = segment_ids_or_zeros(mask.query_segment_ids, q)
            members = (segment_ids[..., None] == numbers[:, None]).to(q.dtype)
            numerator = torch.einsum("b q s, b h q f, b s h f c -> b h q c", members, q, kv_state)
            denominator = torch.einsum("b q s, b h q f, b s h f -> b h q", members, q, k_state)
        return safe_divide(numerator, denominator[..., None])

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j), with length² work."""
        features = self.project_features(x, source, TokenSpan(mask), positions)
        with autocast_disabled(x):
            return self.weights(features, mask)

    def weights(self, features: Features, mask: Mask) -> Tensor:
        """Compute the weights [b h q k]."""
        q, k, rotated_q, rotated_k, _ = features
        queries, keys = q.shape[2], k.shape[2]
        numerator, denominator = rotated_q @ rotated_k.transpose(-2, -1), q @ k.transpose(-2, -1)
        visible = mask.dense(Columns(keys - queries, keys), Columns(0, keys), device=q.device)
        if visible is not None:
            numerator = numerator.masked_fill(~visible, 0.0)
            denominator = denominator.masked_fill(~visible, 0.0)
        return safe_divide(numerator, denominator.sum(dim=-1, keepdim=True))

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().project_output(attended.to(x.dtype), x)

    def create_cache(self) -> Cache:
        return StateCache()

    def decode_state(self, tokens: int) -> int:
        return self.heads * self.feature_map.num_features * (self.head_dim + 1)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j) over the visible keys."""
        feature_map = self.feature_map
        q = naive.linear_heads(self.query, x, self.heads)
        k, v = (naive.linear_heads(layer, source, self.heads) for layer in (self.key, self.value))
        q, k = feature_map.naive_prepare(q, "query"), feature_map.naive_prepare(k, "key")
        if feature_map.rotate_inputs:
            q, k = naive.rotate_qk(self, q, k, positions)
        numerator = denominator = feature_map.naive_kernel(q, k, positions)
        if "heads" in self.position.card.acts and not feature_map.rotate_inputs:
            q = feature_map.naive_features(q, positions, "query")
            k = feature_map.naive_features(k, positions, "key")
            q, k = naive.rotate_qk(self, q, k, positions)
            numerator = q @ k.transpose(-2, -1)
        sums = (denominator * visible[:, None]).sum(dim=-1, keepdim=True)
        weights = numerator * visible[:, None] / torch.where(sums == 0.0, 1.0, sums)
        return naive.linear_output(self.output, weights @ v)


def promote(x: Tensor, other: Tensor) -> Tensor:
    """Convert x to the wider of two types: autocast hands half precision to layers in float32."""
    return x.to(torch.promote_types(x.dtype, other.dtype))


def segment_ids_or_zeros(segment_ids: Tensor | None, heads: Tensor) -> Tensor:
    """Return the segment ids [b t], or zeros for all tokens of heads [b h t c]: one sequence."""
    if segment_ids is not None:
        return segment_ids
    return torch.zeros(heads.shape[::2], dtype=torch.long, device=heads.device)


def global_product(q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Compute Σ_j (q_i·k_j) v_j over all keys of the query's segment, as `causal_product`."""
    if segment_ids is None:
        return q @ (k.mT @ v)
    up_to, _ = causal_product(q, k, v, None, find_segment_starts(segment_ids))
    ends = find_segment_starts(segment_ids.flip(1))
    reversed_from, _ = causal_product(q.flip(2), k.flip(2), v.flip(2), None, ends)
    # Both count the query's own key.
    return up_to + reversed_from.flip(2) - (q * k).sum(dim=-1, keepdim=True) * v


def causal_product(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, segment_starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute Σ_{j ≤ i} (q_i·k_j) v_j [b h t e] over the keys of the query's segment, in chunks.

    The state [b h f e] is Σ k_jᵀ v_j of the tokens before, or None at the start; that after the
    last token is returned as well. True in `segment_starts` [b t] stands where all earlier keys
    are forgotten.
    """
    decay = None
    if segment_starts is not None:
        decay = k.new_zeros(len(k), 1, k.shape[2], 1)
        decay = decay.masked_fill(segment_starts[:, None, :, None], float("-inf"))
    return decayed_product(Steps(q, k, v, decay=decay), state)


def squares(x: Tensor) -> Tensor:
    """Map [… c] to features [… c(c + 1)/2] whose product is the square of the product (x·y)².

    These are all products of two channels; those of different channels appear once, times √2.
    """
    y = 2**0.5 * x
    # By the distance of the channels: slices, whose gradients are cheaper than those of an index.
    pairs = [y[..., :-lag] * x[..., lag:] for lag in range(1, x.shape[-1])]
    return torch.cat([x.square(), *pairs], dim=-1)
