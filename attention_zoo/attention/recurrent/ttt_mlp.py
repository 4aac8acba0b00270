"""TTT-MLP (Sun et al. 2024)."""

from typing import Any

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.ttt import TTTAttention


@register_recurrent(
    name="ttt_mlp",
    paper="Sun et al. 2024, arXiv 2407.04620",
    equation="W ← W − η ∇½|f(k; W) − v|²;  out = f(q; W),  f(x; W) = x + LN(W₂ GELU(W₁ x + b₁) + b₂)",
    reference="closed form",
    deviations="as for ttt_linear",
    cache="two MLPs for each head: the weights before the mini-batch, and its gradients",
)
class TTTMLPAttention(TTTAttention):
    """The state is an MLP with a hidden layer of four times its width, trained to map keys to values.

        f(x; W) = x + LN(W₂ GELU(W₁ x + b₁) + b₂)

    The weights W after each token are those of `TTTAttention`; they are learned for the start of a
    sequence.
    """

    hidden = (4,)

    def __init__(self, *, base_rate: float = 0.1, **options: Any) -> None:
        super().__init__(base_rate=base_rate, **options)
