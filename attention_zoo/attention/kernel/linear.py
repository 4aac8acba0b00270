"""Linear attention (Katharopoulos et al. 2020)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.base import Attention
from attention_zoo.attention.kernel.feature_maps import FEATURE_MAPS, FeatureMapFactory
from attention_zoo.caches import Cache, StateCache
from attention_zoo.errors import Unsupported
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled, safe_divide, upcast
from attention_zoo.zoo import ATTENTION, AttentionCard, unknown_name_message

CHUNK = 64  # tokens computed in parallel between two updates of the state


class Features(NamedTuple):
    """Features of queries and keys, and values; features of padded keys are zero."""

    q: Tensor  # [b h q f]
    k: Tensor  # [b h k f]
    # For the numerator, rotated by the encoding.
    rotated_q: Tensor  # [b h q f]
    rotated_k: Tensor  # [b h k f]
    v: Tensor  # [b h k c]


@ATTENTION.register(
    AttentionCard(
        name="linear",
        paper="Katharopoulos et al. 2020, arXiv 2006.16236, eq. 9 to 12",
        equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x) = elu(x) + 1",
        reference="flash-linear-attention naive_recurrent_linear_attn",
        deviations="rotary positions rotate φ(q) and φ(k) in the numerator only (Su et al. 2021, "
        "arXiv 2104.09864, eq. 19); packed sequences in cross-attention cost length²",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        cost="t",
    )
)
class LinearAttention(Attention):
    """Attention whose weights are products of features, so that the keys can be summed first.

        out_i = φ(q_i) S / φ(q_i) z,   S = Σ_j φ(k_j)ᵀ v_j,   z = Σ_j φ(k_j)

    Training runs over chunks: inside a chunk as a masked product, before it by the state (S, z).
    Decoding is the same with chunks as they come. Features and sums are in float32 at least.

    Args:
        feature_map: φ, `elu`, `performer`, `cosformer`, `taylor`, `rebased` or `hedgehog`, each
            with the default options of its entry in the zoo; or a factory of a `FeatureMap`.
    """

    decided_options = ("kv_heads",)

    def __init__(self, *, feature_map: str | FeatureMapFactory = "elu", **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        if isinstance(feature_map, str):
            if feature_map not in FEATURE_MAPS:
                raise Unsupported(
                    unknown_name_message("feature_map", feature_map, list(FEATURE_MAPS))
                )
            feature_map = FEATURE_MAPS[feature_map]
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
        features = self.project_features(x, context, span, positions if context is None else None)
        with autocast_disabled(x):
            return self.attend(features, span, cache)

    def project_features(
        self, x: Tensor, context: Tensor | None, span: TokenSpan, positions: Tensor | None
    ) -> Features:
        """Project x, and x or the context, to features; cross-attention has no positions."""
        feature_map = self.feature_map
        # Features may be steep, and weights are their quotients, which magnify rounding errors.
        with autocast_disabled(x):
            q = self.project_query(upcast(x))
            k, v = self.project_key_value(upcast(x if context is None else context))
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
        mask, ones = span.mask, torch.ones_like(v[..., :1])
        if mask.causal:
            states = (None, None) if cache is None or cache.state is None else cache.state
            segment_ids = span.segment_ids
            numerator, kv_state = causal_product(rotated_q, rotated_k, v, states[0], segment_ids)
            denominator, k_state = causal_product(q, k, ones, states[1], segment_ids)
            if cache is not None:
                cache.state = kv_state, k_state
                cache.length += k.shape[2]
        elif mask.query_segment_ids is not None:
            return self.weights(features, mask) @ v
        elif mask.segment_ids is not None:
            numerator = packed_product(rotated_q, rotated_k, v, mask.segment_ids)
            denominator = packed_product(q, k, ones, mask.segment_ids)
        else:
            numerator = rotated_q @ (rotated_k.transpose(-2, -1) @ v)
            denominator = q @ (k.transpose(-2, -1) @ ones)
        return safe_divide(numerator, denominator)

    def attend_cached_context(
        self, x: Tensor, context: Tensor, mask: Mask, cache: StateCache
    ) -> Tensor:
        """Compute the means [b h q c] by the sums of each sequence of the context.

        The cache keeps the sums; the context is read the first time only.
        """
        if cache.state is None:
            _, k, _, _, v = self.project_features(x, context, TokenSpan(mask), None)
            segment_ids = segment_ids_or_zeros(mask.segment_ids, k)
            numbers = segment_ids.unique().expand(len(x), -1)
            with autocast_disabled(x):
                members = (segment_ids[..., None] == numbers[:, None]).to(k.dtype)
                kv_state = torch.einsum("b k s, b h k f, b h k c -> b s h f c", members, k, v)
                k_state = torch.einsum("b k s, b h k f -> b s h f", members, k)
            cache.state = kv_state, k_state, numbers
            cache.length = k.shape[2]
        kv_state, k_state, numbers = cache.state
        with autocast_disabled(x):
            q = self.feature_map.prepare_query(self.project_query(upcast(x)))
            q = self.feature_map.map_queries(q, None)
            segment_ids = segment_ids_or_zeros(mask.query_segment_ids, q)
            members = (segment_ids[..., None] == numbers[:, None]).to(q.dtype)
            numerator = torch.einsum("b q s, b h q f, b s h f c -> b h q c", members, q, kv_state)
            denominator = torch.einsum("b q s, b h q f, b s h f -> b h q", members, q, k_state)
        return safe_divide(numerator, denominator[..., None])

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j), with length² work."""
        span = TokenSpan(mask)
        if self.role == "cross":
            return self.weights(self.project_features(x, source, span, None), mask)
        return self.weights(self.project_features(x, None, span, positions), mask)

    def weights(self, features: Features, mask: Mask) -> Tensor:
        """Compute the weights [b h q k]."""
        q, k, rotated_q, rotated_k, _ = features
        queries, keys = q.shape[2], k.shape[2]
        numerator, denominator = rotated_q @ rotated_k.transpose(-2, -1), q @ k.transpose(-2, -1)
        visible = mask.dense(range(keys - queries, keys), range(keys), device=q.device)
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


def segment_ids_or_zeros(segment_ids: Tensor | None, heads: Tensor) -> Tensor:
    """Return the segment ids [b t], or zeros for all tokens of heads [b h t c]: one sequence."""
    if segment_ids is not None:
        return segment_ids
    return torch.zeros(heads.shape[::2], dtype=torch.long, device=heads.device)


def packed_product(q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor) -> Tensor:
    """Compute Σ_j (q_i·k_j) v_j over all keys of the query's segment.

    Args:
        q: [b h t f].
        k: [b h t f].
        v: [b h t e].
        segment_ids: [b t].
    """
    up_to, _ = causal_product(q, k, v, None, segment_ids)
    reversed_from, _ = causal_product(q.flip(2), k.flip(2), v.flip(2), None, segment_ids.flip(1))
    # Both count the query's own key.
    return up_to + reversed_from.flip(2) - (q * k).sum(dim=-1, keepdim=True) * v


def causal_product(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, segment_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute Σ_{j ≤ i} (q_i·k_j) v_j over the keys of the query's segment, in chunks.

    Args:
        q: [b h t f].
        k: [b h t f].
        v: [b h t e].
        state: [b h f e], Σ k_jᵀ v_j of the tokens before; None at the start.
        segment_ids: [b t], or [b 1+t] with that of the token before, if there is a state.

    Returns:
        The sums [b h t e], and the state after the last token.
    """
    first = int(state is not None)
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    outputs = []
    start = 0
    # Split once: each slice in a loop would have a gradient as large as the whole.
    parts = (part.split(CHUNK, dim=2) for part in (q, k, v))
    for q_part, k_part, v_part in zip(*parts, strict=True):
        stop = start + q_part.shape[2]
        scores = (q_part @ k_part.transpose(-2, -1)).tril()
        earlier = q_part @ state
        if segment_ids is not None:
            ids = segment_ids[:, first + start : first + stop]
            scores = scores * (ids[:, None, :, None] == ids[:, None, None, :])
            is_last = ids == ids[:, -1:]
            is_continued = ids == segment_ids[:, max(first + start - 1, 0), None]
            earlier = earlier * is_continued[:, None, :, None]
            k_part = k_part * is_last[:, None, :, None]
            state = state * is_continued[:, -1, None, None, None]
        outputs.append(scores @ v_part + earlier)
        state = state + k_part.transpose(-2, -1) @ v_part
        start = stop
    return torch.cat(outputs, dim=2), state
