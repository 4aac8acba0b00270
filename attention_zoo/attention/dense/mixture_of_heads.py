"""Mixture-of-head attention, MoH (Jin et al. 2024)."""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.selected.topk_selection import select_largest
from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax
from attention_zoo.caches import Cache
from attention_zoo.errors import UserError, check_not_negative, check_positive
from attention_zoo.masks import Mask
from attention_zoo.precision import upcast

LOSS_WEIGHT = 0.01  # β


@register_softmax(
    name="mixture_of_heads",
    also_called=("moh",),
    paper="Jin et al. 2024, arXiv 2410.11842",
    equation="Σ_i g_i softmax(Q_i K_iᵀ/√c) V_i W_Oi, g_i of the shared and the top-k heads",
    reference="closed form",
    deviations="gates as in the authors' code of MoH-ViT: every softmax is multiplied by the "
    "number of its heads, and that of the routed heads is over the selected ones, so that a gate "
    "is 1 on average; all heads are computed, so the selection saves no work; the loss has its "
    "weight 0.01 in it",
    chooses="heads",
)
class MixtureOfHeadsAttention(SoftmaxAttention):
    """A router selects for every token some of the heads, and weighs all of them.

        g_i = 2α₁·s·softmax(W_s x)_i      for the s shared heads, which all tokens have
        g_i = 2α₂·k·softmax(W_r x)_i      over the k best of the others; 0 for the rest
        [α₁, α₂] = softmax(W_h x)         with 2α₂ = 1 if no heads are shared

    The token x is the query's. In training `auxiliary_loss` is β·n Σ_i P_i f_i over the n routed
    heads, with β = 0.01: P_i is the mean over real tokens of softmax(W_r x)_i over all of them, f_i
    the share of tokens that select head i. It is least where the heads are selected equally often.
    With k = 1 the router learns by this loss alone.

    Args:
        shared_heads: number s of heads that every token has: the first ones.
        routed_heads: number k of others that a token selects; default: half of them.
    """

    def __init__(
        self, *, shared_heads: int = 1, routed_heads: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        check_not_negative(shared_heads=shared_heads)
        if routed_heads is None:
            routed_heads = max((self.heads - shared_heads + 1) // 2, 1)
        check_positive(routed_heads=routed_heads)
        if shared_heads + routed_heads > self.heads:
            raise UserError(
                "shared_heads and routed_heads must be at most heads together, got "
                f"shared_heads={shared_heads}, routed_heads={routed_heads}, heads={self.heads}."
            )
        self.shared_heads = shared_heads
        self.routed_heads = routed_heads
        self.router = nn.Linear(self.dim, self.heads - shared_heads, bias=False)
        if shared_heads:
            self.kind_router = nn.Linear(self.dim, 2, bias=False)
        if shared_heads > 1:
            self.shared_router = nn.Linear(self.dim, shared_heads, bias=False)

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        self.auxiliary_loss = self.balance_loss(x, mask) if self.training else None
        return super().attend_tokens(x, context, mask, positions, cache)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        gates = self.gates(x).to(attended.dtype)
        return super().project_output(attended * gates.transpose(1, 2)[..., None], x)

    def gates(self, x: Tensor) -> Tensor:
        """Return the gates [b q h] of tokens [b q d]."""
        logits = upcast(self.router(x))
        chosen = self.choose_heads(logits)
        routed = logits.masked_fill(~chosen, float("-inf")).softmax(dim=-1) * self.routed_heads
        if not self.shared_heads:
            return routed
        shared = torch.ones_like(routed[..., :1])
        if self.shared_heads > 1:
            shared = upcast(self.shared_router(x)).softmax(dim=-1) * self.shared_heads
        of_shared, of_routed = (2.0 * upcast(self.kind_router(x)).softmax(dim=-1)).split(1, dim=-1)
        return torch.cat([of_shared * shared, of_routed * routed], dim=-1)

    def choose_heads(self, logits: Tensor) -> Tensor:
        """Return which of the routed heads have the largest logits [b q n]: a bool of each."""
        chosen = select_largest(logits, self.routed_heads)
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, True)

    def balance_loss(self, x: Tensor, mask: Mask) -> Tensor:
        """Return the loss that keeps tokens from selecting the same heads."""
        logits = upcast(self.router(x))
        real = torch.ones_like(logits[..., :1])
        if self.role != "cross" and mask.key_mask is not None:
            real = mask.key_mask[:, -x.shape[1] :, None].to(logits.dtype)
        count = real.sum().clamp(min=1.0)
        shares = (self.choose_heads(logits) * real).sum(dim=(0, 1)) / count
        means = (logits.softmax(dim=-1) * real).sum(dim=(0, 1)) / count
        return LOSS_WEIGHT * logits.shape[-1] * (means * shares).sum()

    def naive_output(self, attended: Tensor, x: Tensor) -> Tensor:
        """Gate one head at a time."""
        gates = attended.new_zeros(*x.shape[:2], self.heads)
        probabilities = naive_softmax(naive.linear(self.router, x))
        for b, i in product(*map(range, x.shape[:2])):
            best = naive.rank(probabilities[b, i].tolist())[: self.routed_heads]
            total = sum(probabilities[b, i, head] for head in best)
            for head in best:
                share = probabilities[b, i, head] / total
                gates[b, i, self.shared_heads + head] = self.routed_heads * share
        if self.shared_heads:
            shared = torch.ones_like(gates[..., :1])
            if self.shared_heads > 1:
                shared = naive_softmax(naive.linear(self.shared_router, x)) * self.shared_heads
            kinds = 2 * naive_softmax(naive.linear(self.kind_router, x))
            routed = gates[..., self.shared_heads :]
            gates = torch.cat([shared * kinds[..., :1], routed * kinds[..., 1:]], dim=-1)
        heads = [gates[:, :, head, None] * attended[:, head] for head in range(self.heads)]
        return naive.linear_output(self.output, torch.stack(heads, dim=1))


def naive_softmax(logits: Tensor) -> Tensor:
    """Compute exp(s) / Σ exp(s) over the last dimension."""
    powers = torch.exp(logits - logits.amax(dim=-1, keepdim=True).detach())
    return powers / powers.sum(dim=-1, keepdim=True)
