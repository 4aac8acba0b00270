"""Attention by a state of constant size that takes in one token after the other."""

import math
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, StatefulLayer
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.caches import Cache, StateCache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.zoo import ATTENTION

# Registers a recurrent mechanism by the fields of its card that differ from these.
register_recurrent = partial(
    ATTENTION.register,
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings"),
    weights="signed",
    cost="t",
)


TIME_STEP_MIN = 0.001  # the smallest step size that `draw_step_bias` draws
# Of a card: a state that forgets ten times more slowly at the start, or more quickly. Trained
# models differ in how well they forget (Chen et al. 2024, arXiv 2410.07145; Lu et al. 2025, arXiv
# 2509.19633).
STEP_SEARCH_SPACE = {"time_step_max": (0.01, 1.0)}


class RecurrentAttention(Attention):
    """out_t = S_tᵀ q_t, with a state S that each token changes; see `Steps`.

    Training and decoding run over chunks of tokens. States and sums are in float32 at least. A
    variant overrides `project_steps`, `recurrence` (or `recur`) and `implied_weights`.

    Args:
        backend: `torch`; `fla`, the kernels of flash-linear-attention; or `auto`, which is `torch`.
    """

    decided_options: ClassVar[tuple[str, ...]] = ("kv_heads",)
    backends: ClassVar[tuple[str, ...]] = kernels.BACKENDS
    # How many tensors of a cache's state belong to the recurrence; the others, to convolutions.
    num_states: ClassVar[int] = 1

    def __init__(self, *, backend: str = "auto", **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        self.backend = kernels.resolve_backend(backend)
        self.value_dim = self.head_dim

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        kernels.check_inputs(self.backend, mask, x)
        states = () if cache is None else (cache.state or ())
        span = TokenSpan(mask, 0 if cache is None else cache.length)
        convolve = ConvolutionRunner(span, states[self.num_states :])
        steps = self.project_steps(x, positions, convolve)
        attended, states = self.recur(steps, x, span, states[: self.num_states])
        if cache is not None:
            cache.state = (*states, *convolve.states)
            cache.length += x.shape[1]
        return attended

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        """Project tokens [b t d] to steps, to which no mask is applied yet."""
        raise NotImplementedError

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute what the tokens x read [b h t e], and the states after them.

        The states before them are none at the start of a sequence.
        """
        # Sums of many terms lose too much in half precision.
        with autocast_disabled(x):
            out, state = self.recurrence(steps.apply_mask(span), states[0] if states else None)
        return out, (state,)

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute S_tᵀ q_t [b h t e], and the last S [b h c e]."""
        raise NotImplementedError

    def split_heads(self, y: Tensor) -> Tensor:
        """Split [b t (h c)] into heads [b h t c], in float32 at least."""
        return upcast(rearrange(y, "b t (h c) -> b h t c", h=self.heads))

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        span = TokenSpan(mask)
        steps = self.project_steps(x, positions, ConvolutionRunner(span))
        with autocast_disabled(x):
            return self.implied_weights(steps, x, span)

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        """Compute the weights [b h t t] of tokens x for each other, from their unmasked steps."""
        raise NotImplementedError

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return self.project_steps(source, positions, ConvolutionRunner(TokenSpan(mask))).v

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().project_output(attended.to(x.dtype), x)

    def create_cache(self) -> Cache:
        return StateCache()

    def decode_state(self, tokens: int) -> int:
        layers = [part for part in self.children() if isinstance(part, StatefulLayer)]
        return self.state_size(tokens) + sum(part.state_size for part in layers)

    def state_size(self, tokens: int) -> int:
        """Return how many numbers the states of the recurrence have after so many tokens."""
        return self.heads * self.head_dim * self.value_dim


def create_low_rank_linear(inputs: int, rank: int, outputs: int, *, bias: bool) -> nn.Sequential:
    """Create a linear map of low rank."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))


def draw_step_bias(number: int, time_step_max: float) -> Tensor:
    """Draw biases that softplus maps to step sizes from 0.001 up, uniform in their logarithm.

    As in Mamba (Gu and Dao 2023, arXiv 2312.00752), where the largest is 0.1: at the start, some
    channels forget within tens of tokens, and others keep thousands.
    """
    if time_step_max <= TIME_STEP_MIN:
        raise UserError(f"time_step_max must be above {TIME_STEP_MIN}, got {time_step_max}.")
    sizes = torch.empty(number).uniform_(math.log(TIME_STEP_MIN), math.log(time_step_max)).exp()
    return sizes + torch.log(-torch.expm1(-sizes))
