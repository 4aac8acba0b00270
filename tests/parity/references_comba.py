"""Comba, against the plain form of flash-linear-attention, in float32.

Theirs in chunks is what the kernels compute; theirs token by token erases after the decay.
"""

import torch

from attention_zoo import create_attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.masks import TokenSpan
from tests.parity.compared import Outcome, fla, outcome, parity

DIM, HEADS, LENGTH = 32, 4, 70


@parity("comba", "flash-linear-attention naive_chunk_comba")
def comba() -> tuple[Outcome, Outcome]:
    return outcomes(paper_feedback=False)


@parity("comba", "flash-linear-attention naive_chunk_comba(p=σ(b) k)")
def comba_with_the_feedback_of_the_paper() -> tuple[Outcome, Outcome]:
    return outcomes(paper_feedback=True)


def outcomes(*, paper_feedback: bool) -> tuple[Outcome, Outcome]:
    """Compare from the convolutions on: q, p and their norms are computed here."""
    ours = create_attention(
        "comba", dim=DIM, heads=HEADS, role="causal", paper_feedback=paper_feedback
    )
    torch.nn.init.normal_(ours.feedback)
    torch.nn.init.normal_(ours.correction)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    convolve = ConvolutionRunner(TokenSpan())
    q, k, v = (
        torch.nn.functional.silu(
            convolve(getattr(ours, f"{name}_convolution"), getattr(ours, name)(x))
        ).unflatten(-1, (HEADS, -1))
        for name in ("query", "key", "value")
    )
    b, d = ours.feedback.sigmoid()[:, None], ours.correction[:, None]
    if paper_feedback:
        q, k = l2_norm(q - d * k), l2_norm(k)
        p = b * k
    else:
        p = b * k
        q, k, p = l2_norm(q - d * p), l2_norm(k), l2_norm(p)
    expected, _ = fla("comba").naive_chunk_comba(
        q=q, k=k, v=v, p=p, g=ours.log_decay(x)[..., 0].transpose(1, 2), beta=ours.rate(x).sigmoid()
    )
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(expected.transpose(1, 2), x), leaves
    )


def l2_norm(x: torch.Tensor) -> torch.Tensor:
    """Compute what their kernels do to q, k and p."""
    return x / (x.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
