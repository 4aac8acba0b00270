"""What is tuned of a candidate: a learning rate, and an option of its mechanism."""

import math
from collections.abc import Mapping
from typing import NamedTuple

RATE = "optimizer.lr"


class Setting(NamedTuple):
    """A learning rate, and at most one option with another value than the default."""

    rate: float
    option: str = ""  # an override, such as attention.temperature=4.0; empty for the defaults

    @property
    def overrides(self) -> list[str]:
        """Return the overrides that make a training have it."""
        return [f"{RATE}={self.rate}", *([self.option] if self.option else [])]


def best_setting(losses: Mapping[Setting, float]) -> Setting | None:
    """Return the setting of the lowest loss, None if all have diverged.

    Of equal losses, it is the lowest rate, with the default options before others.
    """
    return next(iter(best_settings(losses, 1)), None)


def best_settings(losses: Mapping[Setting, float], count: int) -> list[Setting]:
    """Return the settings of the lowest losses, without those that diverged, by ascending rate."""
    finite = [x for x in sorted(losses) if math.isfinite(losses[x])]
    return sorted(sorted(finite, key=losses.__getitem__)[:count])
