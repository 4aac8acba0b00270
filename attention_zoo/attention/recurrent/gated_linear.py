"""Gated linear attention (Yang et al. 2023)."""

from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attention_zoo.attention.precision import upcast
from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="gated_linear",
        paper="Yang et al. 2023, arXiv 2312.06635, §4",
        equation="S_t = diag(a_t) S_{t−1} + k_tᵀv_t, out_t = q_t S_t, a_t = σ(x_t W₁ W₂ + b)^(1/τ)",
        reference="flash-linear-attention naive_recurrent_gla",
        deviations="q is scaled by 1/√c, which the norm of each head undoes but for its ε; no "
        "encoding on heads: channels that decay differently cannot be turned into each other "
        "without losing that weights depend on distance",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="the state",
        decode_state="h·c·e",
        cost="t",
        weights="signed",
    )
)
class GatedLinearAttention(DecayedAttention):
    """Linear attention whose state forgets, each channel of the keys as the token at hand says:

        S_t = diag(a_t) S_{t−1} + k_tᵀ v_t,   out_t = q_t S_t/√c,   a_t = σ(x_t W₁ W₂ + b)^(1/τ)

    then a norm for each head and a swish gate.

    Args:
        head_dim: width of a head's queries and keys; dim / heads / 2, if not given.
        expand: width of a head's values, as a multiple of head_dim.
        rank: of W₁ W₂.
        temperature: τ; above 1 it makes the state forget more slowly.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        expand: int = 2,
        rank: int = 16,
        temperature: float = 16.0,
        **options: Any,
    ) -> None:
        if head_dim is None:
            if heads < 1 or dim % (2 * heads):
                raise UserError(
                    "dim must be a multiple of 2·heads, as keys are half as wide as values, got "
                    f"dim={dim}, heads={heads}. Or give head_dim."
                )
            head_dim = dim // heads // 2
        if min(expand, rank) < 1 or temperature <= 0.0:
            raise UserError(
                "expand and rank must be at least 1, and temperature above 0, got "
                f"expand={expand}, rank={rank}, temperature={temperature}."
            )
        super().__init__(dim=dim, heads=heads, head_dim=head_dim, **options)
        self.set_value_dim(expand * head_dim)
        self.temperature = temperature
        self.forget = nn.Sequential(
            nn.Linear(dim, rank, bias=False), nn.Linear(rank, heads * head_dim)
        )

    def decay(self, x: Tensor) -> Tensor:
        logits = rearrange(upcast(self.forget(x)), "b t (h c) -> b h t c", h=self.heads)
        return logsigmoid(logits) / self.temperature
