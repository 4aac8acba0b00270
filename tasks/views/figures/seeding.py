"""Random numbers that are the same in every picture."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Draw random numbers from seed 0, and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
