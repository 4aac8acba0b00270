"""What is tuned of a candidate: a learning rate, and an option of its mechanism."""

import math
from collections.abc import Iterator, Mapping, Sequence
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


class Trials(NamedTuple):
    """What the first trials of a candidate have shown."""

    label: str  # of the candidate
    losses: Mapping[Setting, float]  # at a quarter of the length; infinite where it diverged
    chosen: Setting | None  # None if none has trained

    @property
    def rate_losses(self) -> dict[float, float]:
        """Return the losses with the default options, by ascending rate."""
        return {x.rate: self.losses[x] for x in sorted(self.losses) if not x.option}


def best_setting(losses: Mapping[Setting, float]) -> Setting | None:
    """Return the setting of the lowest loss, None if all have diverged.

    Of equal losses, it is the lowest rate, with the default options before others.
    """
    return next(iter(best_settings(losses, 1)), None)


def best_settings(losses: Mapping[Setting, float], count: int) -> list[Setting]:
    """Return the settings of the lowest losses, without those that diverged, by ascending rate."""
    finite = [x for x in sorted(losses) if math.isfinite(losses[x])]
    return sorted(sorted(finite, key=losses.__getitem__)[:count])


def describe_option_trials(options: Mapping[str, Sequence[str]], count: int) -> Iterator[str]:
    """Yield which options each candidate tries, and which try further rates in their place.

    Args:
        options: overrides, by the label of the candidate.
        count: of trials that each candidate has besides those of rates.
    """
    tried = [f"`{label}`: {', '.join(each)}" for label, each in options.items() if each]
    if tried:
        yield f"Tuned besides the learning rate: {'; '.join(tried)}."
    fewer = {label: count - len(each) for label, each in options.items() if len(each) < count}
    if fewer and not tried:
        yield f"No candidate has an option to tune: each tries {count} further rates."
    elif fewer:
        numbers = ", ".join(f"`{label}` ({number})" for label, number in fewer.items())
        yield f"Further rates in place of options: {numbers}."
