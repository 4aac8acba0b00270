"""TTT-Linear (Sun et al. 2024)."""

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.ttt import TTTAttention


@register_recurrent(
    name="ttt_linear",
    also_called=("ttt",),
    paper="Sun et al. 2024, arXiv 2407.04620",
    equation="W ← W − η ∇½|f(k; W) − v|²;  out = f(q; W),  f(x; W) = x + LN(W x + b)",
    reference="flash-linear-attention chunk_ttt_linear_ref",
    deviations="as in the authors' code, the rate of a token falls with its place in the "
    "mini-batch, and a layer norm over all heads comes last, here without a bias; no rotation of "
    "queries and keys by the place in the mini-batch, and no convolutions and gate of the Mamba "
    "backbone",
    cache="two matrices for each head: the weights before the mini-batch, and its gradients",
    # The authors chose 1 for this network, and 0.1 for the MLP.
    search_space={"base_rate": (0.1, 3.0)},
)
class TTTLinearAttention(TTTAttention):
    """The state is a linear map with a layer norm, trained to map keys to values.

        f(x; W) = x + LN(W x + b)

    The weights W after each token are those of `TTTAttention`; W and b are learned for the start of
    a sequence.
    """
