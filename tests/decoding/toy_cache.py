"""What the toy models of these tests remember of the tokens before."""

import torch


class ToyCache:
    def __init__(self) -> None:
        self.length = 0
        self.sums: torch.Tensor | float = 0.0

    def reorder_targets(self, index: torch.Tensor) -> None:
        self.sums = self.sums[index]

    def reorder_contexts(self, index: torch.Tensor) -> None:
        """Keep nothing of the contexts."""
