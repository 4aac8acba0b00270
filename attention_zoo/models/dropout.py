"""Dropout whose random numbers cost little on a CPU."""

import torch
from torch import Tensor, nn

from attention_zoo.tensor_checks import is_eager_cpu

VALUES = 2**16  # of a random integer


class Dropout(nn.Dropout):
    """`nn.Dropout`, several times as fast on a CPU.

    There PyTorch draws a random number of 53 bits for each element. This one draws 16 bits, so that
    an element is kept with the probability k / 2¹⁶ that is next to 1 − p, and kept ones are
    multiplied by 2¹⁶ / k.
    """

    def forward(self, x: Tensor) -> Tensor:
        kept = round((1.0 - self.p) * VALUES)
        # With a p near 0 or 1, to round it would change it too much. Subclasses of tensors draw
        # random numbers of their own.
        has_own = 0.01 <= self.p <= 0.99 and type(x) is Tensor and not self.inplace
        if not (has_own and self.training and is_eager_cpu(x)):
            return super().forward(x)
        quarters = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
        numbers = quarters.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        return x * (numbers < kept - VALUES // 2).to(x.dtype).mul_(VALUES / kept)
