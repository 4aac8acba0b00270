"""Additive attention over the states of recurrent networks (Bahdanau et al. 2015)."""

import torch
from torch import Tensor, nn

from attention_zoo.attention.dense.additive import AdditiveAttention
from attention_zoo.attention.recurrent.cells import States, last_states
from attention_zoo.attention.recurrent.gru import GRUCell
from attention_zoo.attention.softmax import register_softmax
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.masks import Mask, TokenSpan


@register_softmax(
    name="recurrent_additive",
    also_called=("bahdanau",),
    paper="Bahdanau et al. 2015, arXiv 1409.0473, eq. 5 to 7",
    equation="softmax(vᵀ tanh(W s + U h)) V h, h = GRU(source)",
    reference="closed form",
    deviations="in cross-attention, the query s is the decoder's token, and in self-attention it "
    "is h, so the weighted sum is not fed back into a recurrent decoder; several heads, and "
    "projected values; no windows: the GRU sees beyond them",
    roles=("causal", "cross"),
    masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
    positions=("positions", "embeddings", "scores"),
    cache="projected keys and values, and the hidden state of the GRU",
)
class RecurrentAdditiveAttention(AdditiveAttention):
    """Attention as it began: over annotations, the hidden states of GRUs that read the source.

        h = GRU(source),   a_ij = softmax_j(vᵀ tanh(W s_i + U h_j)),   out_i = Σ_j a_ij V h_j

    In cross-attention, a second GRU reads the source from its end, and annotations are the states
    of both. The source of self-attention gives the queries too: s = h.
    """

    decided_options = ("window",)

    def create_projections(self, bias: bool) -> None:
        width, directions = self.heads * self.head_dim, 2 if self.role == "cross" else 1
        self.query = nn.Linear(self.dim, width, bias=bias)
        self.key, self.value = (
            nn.Linear(directions * self.dim, width, bias=bias) for _ in range(2)
        )
        self.output = nn.Linear(width, self.dim, bias=bias)
        self.rnn = GRUCell(self.dim, bias=bias)
        self.backward_rnn = GRUCell(self.dim, bias=bias) if self.role == "cross" else None

    def annotate(self, source: Tensor, span: TokenSpan, states: States | None = None) -> Tensor:
        """Compute the annotations [b k d|2d] of a source, from states on."""
        (forward,) = self.rnn(source, span, states)
        if self.backward_rnn is None:
            return forward
        key_mask, segment_ids = span.mask.key_mask, span.mask.segment_ids
        flipped = Mask(
            key_mask=None if key_mask is None else key_mask.flip(1),
            segment_ids=None if segment_ids is None else segment_ids.flip(1),
        )
        (backward,) = self.backward_rnn(source.flip(1), TokenSpan(flipped))
        return torch.cat([forward, backward.flip(1)], dim=-1)

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, AnnotationCache)
        if context is None:
            start, states = (0, None) if cache is None else (cache.length, cache.states)
            annotations = self.annotate(x, TokenSpan(mask, start), states)
            if cache is not None:
                cache.states = last_states((annotations,))
            x = annotations.to(x.dtype)
        elif cache is None or not cache.tokens:
            context = self.annotate(context, TokenSpan(mask)).to(context.dtype)
        return super().attend_tokens(x, context, mask, positions, cache)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        annotations = self.annotate(source, TokenSpan(mask)).to(source.dtype)
        queries = x if self.role == "cross" else annotations
        return super().compute_map(queries, annotations, mask, positions)

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        annotations = self.annotate(source, TokenSpan(mask)).to(source.dtype)
        return super().compute_values(annotations, mask, positions)

    def create_cache(self) -> Cache:
        return AnnotationCache()

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(tokens) + (self.dim if self.role == "causal" else 0)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        together = visible
        if self.role == "cross":
            # Keys that some query sees together are real, and of one segment.
            together = (visible[..., :, None] & visible[..., None, :]).any(dim=1)
        annotations = self.rnn.naive(source, together)
        if self.backward_rnn is not None:
            states = self.backward_rnn.naive(source.flip(1), together.flip(1, 2))
            annotations = torch.cat([annotations, states.flip(1)], dim=-1)
        queries = x if self.role == "cross" else annotations
        return super().naive(queries, annotations, visible, positions)


class AnnotationCache(TokenCache):
    """Keys and values, and in self-attention the state of the GRU that reads the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.states: States | None = None

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        if self.states is not None:
            self.states = tuple(part.index_select(0, index) for part in self.states)
