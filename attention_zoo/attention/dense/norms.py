"""The norm of queries, keys and latents."""

import torch
from torch import Tensor, nn

from attention_zoo.custom_gradients import rms_norm
from attention_zoo.precision import upcast


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) ⊙ w (Zhang and Sennrich 2019, arXiv 1910.07467), in float32 at least.

    Args:
        shape: of the weight w, which starts with ones.
        over: dimensions that the mean is taken over.
        epsilon: ε.
    """

    no_decay = ("weight",)

    def __init__(self, *shape: int, over: tuple[int, ...] = (-1,), epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.over = over
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        if self.over == (-1,) and self.weight.dim() == 1:
            return rms_norm(wide, self.weight.to(wide.dtype), self.epsilon).to(x.dtype)
        normed = wide * torch.rsqrt(wide.square().mean(self.over, keepdim=True) + self.epsilon)
        return (normed * self.weight).to(x.dtype)
