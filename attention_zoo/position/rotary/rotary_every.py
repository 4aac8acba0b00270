"""Rotary positions in some of the layers only (Yang et al. 2025)."""

from typing import Any

from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="rotary_every",
    also_called=("rnope", "irope"),
    paper="Yang et al. 2025, arXiv 2501.18795",
    equation="rotary, but in the layers N − 1, 2N − 1, … q_t·k_s without positions",
    reference="transformers SmolLM3Attention",
    deviations="the paper also gives a window to the layers with rotary positions; here a "
    "window is the mechanism's",
    acts=("heads",),
    per_layer=True,
)
class RotaryEvery(RotaryEncoding):
    """Rotary positions in all layers but N − 1, 2N − 1 and so on, counted from 0, which have none.

    A layer without positions finds tokens by content alone, however far away; the layers between
    tell each token about its neighbours.

    Args:
        every: N, in layers.
    """

    def __init__(self, *, every: int = 4, **options: Any) -> None:
        super().__init__(**options)
        if every < 2:
            raise UserError(
                f"every must be at least 2 layers, got {every}. For no positions in any layer "
                "choose position=none."
            )
        self.every = every

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(q, k, positions) if (self.layer + 1) % self.every else (q, k)

    def naive_rotate(self, x: Tensor, positions: Tensor, **options: Any) -> Tensor:
        if (self.layer + 1) % self.every == 0:
            return x
        return super().naive_rotate(x, positions, **options)
