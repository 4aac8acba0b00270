"""Attention by a state of constant size that takes in one token after the other."""

from typing import Any, ClassVar

from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.caches import Cache, StateCache
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled


class RecurrentAttention(Attention):
    """out_t = S_tᵀ q_t, with a state S that each token changes; see `Steps`.

    Training runs over chunks, and so does decoding, with chunks as they come. States and sums are
    in float32 at least. A variant overrides `project_steps` and `recurrence` (or `recur`).

    Args:
        backend: `torch`; `fla`, the kernels of flash-linear-attention; or `auto`, which is `torch`.
    """

    decided_options = ("kv_heads",)
    backends: ClassVar[tuple[str, ...]] = kernels.BACKENDS
    # How many tensors of a cache's state belong to the recurrence; convolutions have the others.
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
        states: tuple[Tensor, ...] = ()
        if cache is not None and cache.state is not None:
            states = cache.state
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
        """Run the steps of tokens x from the states of the recurrence on, which are none at first.

        Returns:
            What the tokens read, [b h t e], and the states after the last token.
        """
        # Sums of many terms lose too much in half precision.
        with autocast_disabled(x):
            out, state = self.recurrence(steps.apply_mask(span), states[0] if states else None)
        return out, (state,)

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute S_tᵀ q_t [b h t e], and the last S [b h c e]."""
        raise NotImplementedError

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return self.project_steps(source, positions, ConvolutionRunner(TokenSpan(mask))).v

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().project_output(attended.to(x.dtype), x)

    def create_cache(self) -> Cache:
        return StateCache()

    def decode_state(self, tokens: int) -> int:
        convolutions = [part for part in self.modules() if isinstance(part, ShortConvolution)]
        return self.state_size(tokens) + sum(part.state_size for part in convolutions)

    def state_size(self, tokens: int) -> int:
        """Return how many numbers the states of the recurrence have after so many tokens."""
        return self.heads * self.head_dim * self.value_dim


def create_low_rank_linear(inputs: int, rank: int, outputs: int, *, bias: bool) -> nn.Sequential:
    """Create a linear map of low rank."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))
