"""Sorting a list (Kazemnejad et al. 2023, arXiv 2305.19466)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.tasks.data.diagnostics.copy import Copy


@dataclass(frozen=True, kw_only=True)
class Sort(Copy):
    """Draws `5 1 7 1 | 1 1 5 7`: like `Copy`, but the symbols come back in order.

    These are the lists of one-token symbols of Kazemnejad et al., without commas between them.
    """

    length: int = 20
    min_length: int = 2
    vocabulary: int = 50

    def transform_strings(self, strings: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        # What is not of the string goes to the end.
        is_string = np.arange(self.length) < lengths[:, None]
        return np.sort(np.where(is_string, strings, np.iinfo(strings.dtype).max), axis=1)
