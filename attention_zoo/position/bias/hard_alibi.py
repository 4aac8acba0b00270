"""Hard ALiBi: heads with windows, and heads without positions (Jelassi et al. 2024)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError, check_positive
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding
from attention_zoo.zoo import POSITION

# Added to hidden scores. The exponential is 0 in every type; infinity would make a query that sees
# nothing within its window, as padding may, NaN.
HIDDEN = -(2.0**19)


@POSITION.register(
    name="hard_alibi",
    paper="Jelassi et al. 2024 (Repeat After Me), arXiv 2402.01032",
    equation="q_t·k_s/√c − ∞·[t − s ≥ i] in head i ≤ m; q_t·k_s/√c in the others",
    reference="closed form",
    acts=("scores",),
    roles=("causal",),
    deviations="−2¹⁹ for −∞, as the authors' code has the smallest number of the type",
)
class HardAlibiEncoding(PositionalEncoding):
    """Lets head i see the last i tokens only, itself included, and other heads see everything.

        b_ts = 0 if t − s < i, −∞ otherwise,   for the heads i = 1 … m; 0 for the others

    So the first m heads together read the last m tokens in their order, as n-grams, and the others
    find content anywhere in a sequence, however long.

    Args:
        windowed_heads: number m of heads that see a window; default: half of the heads, as in the
            authors' code, and at least one.
    """

    def __init__(self, *, windowed_heads: int | None = None, **sizes: Any) -> None:
        super().__init__(**sizes)
        windowed_heads = max(self.heads // 2, 1) if windowed_heads is None else windowed_heads
        check_positive(windowed_heads=windowed_heads)
        if windowed_heads > self.heads:
            raise UserError(
                f"windowed_heads must be at most the number of heads, {self.heads}, got "
                f"{windowed_heads}."
            )
        self.windowed_heads = windowed_heads

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, :, None] - k_positions[:, None, :])[:, None]
        windows = torch.arange(1, self.heads + 1, device=distance.device)[:, None, None]
        hidden = (distance >= windows) & (windows <= self.windowed_heads)
        return torch.zeros_like(hidden, dtype=self.dtype).masked_fill(hidden, HIDDEN)

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor | float:
        if inputs.head >= self.windowed_heads:
            return 0.0
        return -(2.0**19) * (inputs.distances > inputs.head).to(inputs.query.dtype)
