"""ReLU attention (Wortsman et al. 2023)."""

from torch import Tensor

from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax


@register_softmax(
    name="relu",
    paper="Wortsman et al. 2023, arXiv 2309.08586",
    equation="[QKᵀ/√c]₊ / n V, n keys visible to the query",
    reference="closed form",
    deviations="divides by the number of visible keys; the paper, which knows no masks, by "
    "the length",
    weights="nonnegative",
)
class ReluAttention(ExplicitScoresAttention):
    """The positive scores, divided by the number n_i of keys that the query sees.

    a_ij = [s_ij]₊ / n_i,   out_i = Σ_j a_ij V_j
    """

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is None:
            return scores.relu() / scores.shape[-1]
        seen = visible.sum(dim=-1, keepdim=True).clamp(min=1)
        return scores.relu().masked_fill(~visible, 0.0) / seen

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        return scores.clamp(min=0) / len(scores)
