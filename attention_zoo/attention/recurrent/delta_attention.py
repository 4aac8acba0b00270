"""Attention by a state that the delta rule updates: what its variants share."""

import torch
from einops import rearrange
from torch import Tensor

from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.base import RecurrentAttention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.delta_rule import delta_rule
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import upcast


class DeltaRuleAttention(RecurrentAttention):
    """Recurrent attention whose state erases what a key reads before it adds a value.

    A variant overrides `project_steps`, `project_output` and `naive`. All that leads to the state
    is in float32 at least.
    """

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return (kernels.delta_rule if self.backend == "fla" else delta_rule)(steps, state)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute what each token would read if values were unit vectors."""
        span = TokenSpan(mask)
        steps = self.project_steps(x, positions, ConvolutionRunner(span))
        return self.recurrence(steps.use_unit_values().apply_mask(span), None)[0]

    def split_heads(self, y: Tensor) -> Tensor:
        """Split [b t (h c)] into heads [b h t c], in float32 at least."""
        return upcast(rearrange(y, "b t (h c) -> b h t c", h=self.heads))


def unit_vectors(x: Tensor) -> Tensor:
    """Scale vectors [… c] to the length 1; zeros stay zeros."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
