"""PaTH attention (Yang et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.recurrent.delta_attention import (
    DeltaRuleAttention,
    Mix,
    mixing,
    narrow,
    unit,
)
from attention_zoo.attention.recurrent.delta_rule import Steps, masked, recurrence
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache, StateCache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="path",
        paper="Yang et al. 2025, arXiv 2505.16381",
        equation="softmax_j(q_iᵀ H_i ⋯ H_{j+1} k_j / √c) V,  H = I − β w wᵀ",
        reference="flash-linear-attention naive_path_attn",
        deviations="SiLU before w becomes a unit vector, as in the authors' code; no windows: the "
        "convolution before w looks beyond them; takes no other encoding of positions but in the "
        "embeddings, as it is one",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="keys, turned by every token that comes, values, and the last convolution inputs",
        decode_state="2·t·h·c + (K - 1)·h·c",
    )
)
class PathAttention(DeltaRuleAttention):
    """Softmax attention; what lies between a key and a query turns the key on its way:

        a_ij = softmax_j(q_iᵀ H_i H_{i−1} ⋯ H_{j+1} k_j / √c),   H_t = I − β_t w_t w_tᵀ

    with β = 2 σ(W x + b), and w a unit vector made from x by a projection of low rank, a short
    convolution and SiLU. The scores are what the delta rule's state, which holds the keys, is read
    to hold; so the cached keys are that state.

    Args:
        kernel_size: K, the tokens that the convolution mixes, oneself included.
        rank: of the projection to w.
        dropout: probability of dropping a weight in training.
    """

    decided_options = ("backend",)

    def __init__(
        self, *, kernel_size: int = 3, rank: int = 32, dropout: float = 0.0, **options: Any
    ) -> None:
        super().__init__(backend="torch", **options)
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout must be at least 0 and below 1, got {dropout}.")
        if rank < 1:
            raise UserError(f"rank must be at least 1, got {rank}.")
        self.dropout = dropout
        width = self.heads * self.head_dim
        self.rotate_by_length = narrow(self.dim, rank, width, bias=False)
        self.turn_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads)

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"K": self.turn_convolution.kernel_size}

    def steps(self, x: Tensor, mix: Mix) -> Steps:
        q, k, v = (self.heads_of(part(x)) for part in (self.query, self.key, self.value))
        w = unit(silu(self.heads_of(mix(self.turn_convolution, self.rotate_by_length(x)))))
        beta = 2.0 * upcast(self.rate(x)).sigmoid().transpose(1, 2)[..., None]
        return Steps(q * self.head_dim**-0.5, k, v, erase=w, write=beta * w)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        mask = self.effective_mask(mask, x, context, cache)
        kept = (None, None) if cache is None or cache.state is None else cache.state
        keys, values, *before = kept
        mix = mixing(mask, 0 if cache is None else cache.length, tuple(before))
        steps = self.steps(x, mix)
        with autocast_disabled(x):
            weights, keys = self.weights(steps, mix.real, mask, keys)
            values = steps.v if values is None else torch.cat([values, steps.v], dim=2)
            attended = torch.dropout(weights, self.dropout, train=self.training) @ values
        if cache is not None:
            cache.state = keys, values, *mix.after
            cache.length += x.shape[1]
        return self.finish(attended, x)

    def weights(
        self, steps: Steps, real: Tensor | None, mask: Mask, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Those of all keys [b h q k], and the keys [b h k c] as they are behind the last step."""
        queries = steps.q.shape[2]
        held = 0 if keys is None else keys.shape[2]
        token_positions = torch.eye(queries, dtype=steps.q.dtype, device=steps.q.device)
        values = pad(token_positions, (held, 0)).expand(*steps.q.shape[:2], -1, -1)
        state = None if keys is None else pad(keys.transpose(-2, -1), (0, queries))
        scores, state = recurrence(masked(steps._replace(v=values), real, None), state)
        length = held + queries
        visible = mask.dense(range(held, length), range(length), device=scores.device)
        return masked_softmax(scores, visible), state.transpose(-2, -1)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        mask = self.effective_mask(mask, x, context)
        mix = mixing(mask)
        return self.weights(self.steps(x, mix), mix.real, mask)[0]

    def naive_reading(self, steps: Steps, visible: Tensor) -> Tensor:
        """Token after token, each turning all the keys before it."""
        q, k, v, w, write = steps[:5]
        assert write is not None
        keys, outputs = k[:, :, :0], []
        for t in range(q.shape[2]):
            real = visible[:, t, t, None, None, None]
            turned = keys - (keys @ w[:, :, t, :, None]) * write[:, :, t, None]
            keys = torch.cat([torch.where(real, turned, keys), k[:, :, t, None]], dim=2)
            powers = (keys @ q[:, :, t, :, None]).exp() * visible[:, None, t, : t + 1, None]
            total = powers.sum(dim=2, keepdim=True)
            weights = powers / total.masked_fill(total == 0.0, 1.0)
            outputs.append((weights * v[:, :, : t + 1]).sum(dim=2))
        return torch.stack(outputs, dim=2)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        return self.project_output(attended.to(x.dtype))
