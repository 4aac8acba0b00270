"""Linear attention (Katharopoulos et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.kernel.feature_maps import FEATURE_MAPS, FeatureMapFactory
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.caches import Cache, StateCache
from attention_zoo.errors import Unsupported
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard, unknown_name_message

CHUNK = 64  # tokens computed in parallel between two updates of the state


@ATTENTION.register(
    AttentionCard(
        name="linear",
        paper="Katharopoulos et al. 2020, arXiv 2006.16236, eq. 9 to 12",
        equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x) = elu(x) + 1",
        reference="flash-linear-attention naive_recurrent_linear_attn",
        deviations="rotary positions turn φ(q) and φ(k) in the numerator only (Su et al. 2021, "
        "arXiv 2104.09864, eq. 19); packed sequences in cross-attention cost length²",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        decode_state="h·f·(c + 1)",
        cost="t",
    )
)
class LinearAttention(Attention):
    """Attention whose weights are products of features, so that the keys can be summed first:

        out_i = φ(q_i) S / φ(q_i) z,   S = Σ_j φ(k_j)ᵀ v_j,   z = Σ_j φ(k_j)

    Training runs over chunks: inside one as a masked product, before it by the state (S, z).
    Decoding is the same with chunks as they come. Features and sums are in float32 at least.

    Args:
        feature_map: φ, `elu`, `performer`, `cosformer`, `taylor`, `rebased` or `hedgehog`, each as
            its entry in the zoo has it by default; or a factory of a `FeatureMap`.
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
        turned = self.feature_map
        return turned.input_dim if turned.of_products else turned.features

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"f": self.feature_map.features}

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        mask = self.effective_mask(mask, x, context, cache)
        if context is not None and cache is not None:
            out = self.attend_kept(x, context, mask, cache)
        else:
            start = 0 if cache is None else cache.length
            heads = self.heads_of(x, context, mask, positions, start)
            with autocast_disabled(x):
                out = self.attend(*heads, mask, cache, start)
        return self.project_output(out.to(x.dtype))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        turned_q: Tensor,
        turned_k: Tensor,
        v: Tensor,
        mask: Mask,
        cache: StateCache | None,
        start: int,
    ) -> Tensor:
        """[b h q c], of keys that begin at the place `start`; the cache takes in their sums."""
        ones = torch.ones_like(v[..., :1])
        if mask.causal:
            before = (None, None) if cache is None or cache.state is None else cache.state
            segment_ids = (
                None if mask.segment_ids is None else mask.segment_ids[:, max(start - 1, 0) :]
            )
            numerator, kv_state = causal_product(turned_q, turned_k, v, before[0], segment_ids)
            denominator, k_state = causal_product(q, k, ones, before[1], segment_ids)
            if cache is not None:
                cache.state = kv_state, k_state
                cache.length += k.shape[2]
        elif mask.query_segment_ids is not None:
            return self.weights(q, k, turned_q, turned_k, mask) @ v
        elif mask.segment_ids is not None:
            numerator = packed_product(turned_q, turned_k, v, mask.segment_ids)
            denominator = packed_product(q, k, ones, mask.segment_ids)
        else:
            numerator = turned_q @ (turned_k.transpose(-2, -1) @ v)
            denominator = q @ (k.transpose(-2, -1) @ ones)
        return divided(numerator, denominator)

    def attend_kept(self, x: Tensor, context: Tensor, mask: Mask, cache: StateCache) -> Tensor:
        """[b h q c], by the sums of each sequence in the context, which the cache keeps."""
        if cache.state is None:
            _, k, _, _, v = self.heads_of(x, context, mask, None, 0)
            segment_ids = zeros_unless(mask.segment_ids, k)
            numbers = segment_ids.unique().expand(len(x), -1)
            with autocast_disabled(x):
                own = (segment_ids[..., None] == numbers[:, None]).to(k.dtype)
                kv_state = torch.einsum("b k s, b h k f, b h k c -> b s h f c", own, k, v)
                k_state = torch.einsum("b k s, b h k f -> b s h f", own, k)
            cache.state = kv_state, k_state, numbers
            cache.length = k.shape[2]
        kv_state, k_state, numbers = cache.state
        with autocast_disabled(x):
            q = self.feature_map.prepare_query(self.project_query(upcast(x)))
            q = self.feature_map.queries(q, None)
            own = (zeros_unless(mask.query_segment_ids, q)[..., None] == numbers[:, None]).to(
                q.dtype
            )
            numerator = torch.einsum("b q s, b h q f, b s h f c -> b h q c", own, q, kv_state)
            denominator = torch.einsum("b q s, b h q f, b s h f -> b h q", own, q, k_state)
        return divided(numerator, denominator[..., None])

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j), what the sums imply, with length² work."""
        mask = self.effective_mask(mask, x, context)
        q, k, turned_q, turned_k, _ = self.heads_of(x, context, mask, positions, 0)
        return self.weights(q, k, turned_q, turned_k, mask)

    def empty_cache(self) -> Cache:
        return StateCache()

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask,
        positions: Tensor | None,
        start: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Features of q and k, plain and turned by the position, and v. Padded keys are zero."""
        q, k, v, at = self.prepared(x, context, positions, start)
        with autocast_disabled(x):
            q, k = self.feature_map.queries(q, at), self.feature_map.keys(k, at)
            if mask.key_mask is not None:
                k = k * mask.key_mask[:, None, start:, None]
            if at is None or self.feature_map.of_products:
                return q, k, q, k, v
            return q, k, *self.position.rotate(q, k, at), v

    def prepared(
        self, x: Tensor, context: Tensor | None, positions: Tensor | None, start: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Q and k as the feature map takes them, v, and the places, None in cross-attention."""
        # Features may be steep, and weights are quotients of them: roundings would be blown up.
        with autocast_disabled(x):
            q = self.project_query(upcast(x))
            k, v = self.project_key_value(upcast(x if context is None else context))
            q, k = self.feature_map.prepare_query(q), self.feature_map.prepare_key(k)
            if context is not None:
                return q, k, v, None
            if positions is None:
                positions = torch.arange(start, start + x.shape[1], device=x.device)[None, :]
            if self.feature_map.of_products:
                q, k = self.position.rotate(q, k, positions)
            return q, k, v, positions

    def weights(
        self, q: Tensor, k: Tensor, turned_q: Tensor, turned_k: Tensor, mask: Mask
    ) -> Tensor:
        """[b h q k]."""
        queries, keys = q.shape[2], k.shape[2]
        numerator, denominator = turned_q @ turned_k.transpose(-2, -1), q @ k.transpose(-2, -1)
        visible = mask.dense(range(keys - queries, keys), range(keys), device=q.device)
        if visible is not None:
            numerator, denominator = (
                numerator.masked_fill(~visible, 0.0),
                denominator.masked_fill(~visible, 0.0),
            )
        return divided(numerator, denominator.sum(dim=-1, keepdim=True))

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j) over the visible keys. `visible` is [b q k]."""
        q, k, v, at = self.prepared(x, context, positions, 0)
        numerator = denominator = self.feature_map.kernel(q, k, at) * visible[:, None]
        if "heads" in self.position.card.acts and not self.feature_map.of_products:
            q, k, turned_q, turned_k, _ = self.heads_of(x, context, Mask(), positions, 0)
            numerator = torch.einsum(
                "bhqf, bhkf, bqk -> bhqk", turned_q, turned_k, visible.to(q.dtype)
            )
            denominator = torch.einsum("bhqf, bhkf, bqk -> bhqk", q, k, visible.to(q.dtype))
        nothing = ~visible.any(dim=-1)[:, None, :, None]
        return self.project_output(
            numerator @ v / (denominator.sum(dim=-1, keepdim=True) + nothing)
        )


def zeros_unless(segment_ids: Tensor | None, heads: Tensor) -> Tensor:
    """The segments [b t], or zeros for all tokens of heads [b h t c]: one sequence."""
    if segment_ids is not None:
        return segment_ids
    return torch.zeros(heads.shape[::2], dtype=torch.long, device=heads.device)


def divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Above / below, and zero where a query sees no key."""
    return numerator / denominator.masked_fill(denominator == 0.0, 1.0)


def packed_product(q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor) -> Tensor:
    """Σ_j (q_i·k_j) v_j over the keys of the query's own segment, before and behind it.

    Args:
        q, k: [b h t f]. v: [b h t e]. segments: [b t].
    """
    before, _ = causal_product(q, k, v, None, segment_ids)
    behind, _ = causal_product(q.flip(2), k.flip(2), v.flip(2), None, segment_ids.flip(1))
    # Both count the query's own key.
    return before + behind.flip(2) - (q * k).sum(dim=-1, keepdim=True) * v


def causal_product(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, segment_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Σ_{j ≤ i} (q_i·k_j) v_j, in chunks, going on from a state.

    Args:
        q, k: [b h t f]. v: [b h t e].
        state: [b h f e], Σ k_jᵀ v_j of what came before; None for nothing.
        segment_ids: [b t], or [b 1+t] with the last number before t in front, where there is a state:
            only keys of the query's own segment count.

    Returns:
        The sums [b h t e], and the state behind the last token.
    """
    going_on = state is not None
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    outputs = []
    start = 0
    # Taken apart once: each slice in a loop would have a gradient as large as the whole.
    parts = (part.split(CHUNK, dim=2) for part in (q, k, v))
    for q_part, k_part, v_part in zip(*parts, strict=True):
        stop = start + q_part.shape[2]
        scores = (q_part @ k_part.transpose(-2, -1)).tril()
        earlier = q_part @ state
        if segment_ids is not None:
            shift = int(going_on)
            own = segment_ids[:, shift + start : shift + stop]
            scores = scores * (own[:, None, :, None] == own[:, None, None, :])
            previous = segment_ids[:, max(shift + start - 1, 0)]
            same, final = own == previous[:, None], own[:, -1:]
            earlier = earlier * same[:, None, :, None]
            k_part = k_part * (own == final)[:, None, :, None]
            state = state * same[:, -1, None, None, None]
        outputs.append(scores @ v_part + earlier)
        state = state + k_part.transpose(-2, -1) @ v_part
        start = stop
    return torch.cat(outputs, dim=2), state
