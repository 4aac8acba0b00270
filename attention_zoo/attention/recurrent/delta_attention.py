"""Attention by a state that the delta rule updates: what its variants share."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.recurrent.delta_rule import Steps, masked, one_hot, recurrence
from attention_zoo.caches import Cache, StateCache
from attention_zoo.masks import Mask

# Runs a convolution over the tokens [b t d], as far as they may see each other.
Mix = Callable[[ShortConvolution, Tensor], Tensor]


class Mixing:
    """A `Mix` that goes on from the states before its tokens, and keeps those behind them.

    Args:
        before: a state for each convolution, in the order of their calls; none at the start.
        real: [b t] bool, False at padding.
        segment_ids: [b t], or [b 1+t] with the last number before t in front.
    """

    def __init__(
        self, before: tuple[Tensor, ...], real: Tensor | None, segment_ids: Tensor | None
    ) -> None:
        self.before = before
        self.real = real
        self.segment_ids = segment_ids
        self.after: tuple[Tensor, ...] = ()

    def __call__(self, convolution: ShortConvolution, x: Tensor) -> Tensor:
        state = self.before[len(self.after)] if self.before else None
        y, state = convolution(x, state=state, key_mask=self.real, segment_ids=self.segment_ids)
        self.after = (*self.after, state)
        return y


class DeltaRuleAttention(Attention):
    """o_t = finish(S_tᵀ q_t), with a state S that the delta rule updates; see `Steps`.

    A variant says what its steps are. Training runs over chunks, decoding is the same with chunks
    as they come. The state, and all that leads to it, is float32 at least.

    Args:
        backend: `torch`; `fla`, the kernels of flash-linear-attention; or `auto`, which is `torch`.
    """

    decided_options = ("kv_heads",)
    backends: ClassVar[tuple[str, ...]] = kernels.CHOICES

    def __init__(self, *, backend: str = "auto", **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        self.backend = kernels.chosen(backend)

    def steps(self, x: Tensor, mix: Mix) -> Steps:
        """Of tokens [b t d], without a mask."""
        raise NotImplementedError

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
        kernels.check(self.backend, mask, x)
        state, *before = (None,) if cache is None or cache.state is None else cache.state
        mix = mixing(mask, 0 if cache is None else cache.length, tuple(before))
        steps = masked(self.steps(x, mix), mix.real, mix.segment_ids)
        # Sums of many terms lose too much in half precision.
        with autocast_disabled(x):
            attended, state = self.recur(steps, state)
        if cache is not None:
            cache.state = state, *mix.after
            cache.length += x.shape[1]
        return self.finish(attended, x)

    def recur(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the tokens read [b h t e], and the last state."""
        return (kernels.recurrence if self.backend == "fla" else recurrence)(steps, state)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the state implies: the reading of each token if values were unit vectors."""
        mask = self.effective_mask(mask, x, context)
        mix = mixing(mask)
        steps = masked(self.steps(x, mix), mix.real, mix.segment_ids)
        return self.recur(one_hot(steps), None)[0]

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        return self.steps(x, mixing(self.effective_mask(mask, x, context))).v

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The recurrence, token after token, its transitions written out as matrices.

        A token that does not see itself is padding; one that sees nothing before it starts anew.
        """
        steps = self.steps(x, lambda convolution, x: convolution.naive(x, visible))
        return self.finish(self.naive_reading(steps, visible), x)

    def naive_reading(self, steps: Steps, visible: Tensor) -> Tensor:
        """[b h t e]. `visible` is [b t t]."""
        q, k, v, erase, write, decay, _ = steps
        write = k if write is None else write
        identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        real, fresh = visible.diagonal(dim1=1, dim2=2), ~visible.tril(-1).any(dim=-1)
        state, outputs = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), []
        for t in range(q.shape[2]):
            transition = identity - outer(write[:, :, t], erase[:, :, t])
            if decay is not None:
                transition = transition * decay[:, :, t, None].exp()
            state = state.masked_fill(fresh[:, t, None, None, None], 0.0)
            after = transition @ state + outer(k[:, :, t], v[:, :, t])
            state = torch.where(real[:, t, None, None, None], after, state)
            outputs.append((q[:, :, t, None] @ state)[:, :, 0])
        return torch.stack(outputs, dim=2)

    def empty_cache(self) -> Cache:
        return StateCache()

    def heads_of(self, y: Tensor) -> Tensor:
        """[b t (h c)] -> [b h t c], in float32 at least."""
        return upcast(rearrange(y, "b t (h c) -> b h t c", h=self.heads))


def mixing(mask: Mask, start: int = 0, before: tuple[Tensor, ...] = ()) -> Mixing:
    """Of the tokens from the place `start` on."""
    return Mixing(
        before,
        None if mask.key_mask is None else mask.key_mask[:, start:],
        None if mask.segment_ids is None else mask.segment_ids[:, max(start - 1, 0) :],
    )


def unit(x: Tensor) -> Tensor:
    """Vectors [… c] of length 1; zeros stay zeros."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """[… c] and [… e]: [… c e]."""
    return x[..., :, None] * y[..., None, :]


def narrow(inputs: int, rank: int, outputs: int, *, bias: bool) -> nn.Sequential:
    """A linear map of low rank."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))
