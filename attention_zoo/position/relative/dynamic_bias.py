"""Context-aware biases, CABLE (Veisi et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, ScoreInputs
from attention_zoo.precision import upcast
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="dynamic_bias",
    paper="Veisi et al. 2025, arXiv 2503.08067",
    equation="q_t·k_s/√c − Σ_{s<l≤t} softplus(w_h·x_l + β_h)",
    reference="closed form",
    acts=("content",),
    roles=("causal",),
    per_layer=True,
    deviations="causal only, not the paper's form for encoders; scores are scaled by 1/√c, "
    "which the authors' code leaves out; a token that the query does not see, such as padding, "
    "adds nothing to the sum",
)
class DynamicBiasEncoding(PositionalEncoding):
    """Lowers the score of a key by a learned step of each token from there to the query.

        b_ts = Σ_{s < l ≤ t} −softplus(w_h·x_l + β_h)

    So every token decides, for each head, how much further away it moves all tokens before it. A
    distance counts the tokens that the query sees, whatever their positions are.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.step = nn.Linear(self.dim, self.heads)

    def cached_features(self, x: Tensor) -> dict[str, Tensor]:
        steps = softplus(upcast(self.step(x)))
        return {"context_bias": -steps.transpose(1, 2)[..., None]}

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        # A sum from the query back: a difference of sums from the start would lose digits.
        steps = inputs.features["context_bias"].flip(-2).transpose(-2, -1)
        steps = steps.expand(-1, -1, inputs.q.shape[2], -1)
        if inputs.visible is not None:
            steps = steps.masked_fill(~inputs.visible.flip(-1), 0.0)
        behind = steps.cumsum(dim=-1)[..., :-1].flip(-1)
        return pad(behind, (0, 1))

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        raw = inputs.tokens @ self.step.weight[inputs.head] + self.step.bias[inputs.head]
        steps = torch.log(1 + torch.exp(raw))
        return torch.stack([-steps[s + 1 :].sum() for s in range(len(inputs.keys))])
