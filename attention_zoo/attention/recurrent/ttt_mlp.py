"""TTT-MLP (Sun et al. 2024)."""

from typing import Any

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.ttt import TTTAttention


@register_recurrent(
    name="ttt_mlp",
    also_called=("ttt",),
    paper="Sun et al. 2024, arXiv 2407.04620",
    equation="W ← W − η ∇½|f(k; W) − v|²;  out = f(q; W),  f(x; W) = x + LN(MLP(x; W))",
    reference="closed form",
    deviations="those of ttt_linear",
    cache="two MLPs for each head: the weights before the mini-batch, and its gradients",
    search_space={"base_rate": (0.03, 1.0)},
)
class TTTMLPAttention(TTTAttention):
    """The state is an MLP with a layer norm, trained to map keys to values.

        f(x; W) = x + LN(W₂ GELU(W₁ x + b₁) + b₂)

    The weights W after each token are those of `TTTAttention`; they are learned for the start of a
    sequence. The hidden layer is four times as wide as a head.
    """

    hidden = (4,)

    def __init__(self, *, base_rate: float = 0.1, **options: Any) -> None:
        super().__init__(base_rate=base_rate, **options)
