"""Reversing a string."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.tasks.data.diagnostics.copy import Copy


@dataclass(frozen=True, kw_only=True)
class Reverse(Copy):
    """Draws `5 1 7 | 7 1 5`: like `Copy`, but the string comes back in reverse order."""

    def transform_strings(self, strings: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        mirrored = lengths[:, None] - 1 - np.arange(self.length)
        return np.take_along_axis(strings, mirrored.clip(min=0), axis=1)
