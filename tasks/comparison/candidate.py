"""A configuration that is compared with others, and what its trials have shown."""

import math
from dataclasses import dataclass, field

from attention_zoo.tasks.comparison.plan import Cost
from attention_zoo.tasks.comparison.rates import best_rate, is_at_edge


@dataclass
class Candidate:
    """A configuration that is compared with others, and what was found of it."""

    overrides: list[str]
    name: str  # of what not all candidates have, the same at all widths
    width: int  # model.dim
    label: str  # the name, and the width if there are several
    center: float  # of its learning rates
    cost: Cost | None = None  # None where it was refused or failed
    reason: str = ""  # why there is no cost
    losses: dict[float, float] = field(default_factory=dict)  # by rate, at a quarter of the length
    later_losses: dict[float, float] = field(default_factory=dict)  # at half the length

    @property
    def best_rate(self) -> float | None:
        """Return the rate of the lowest loss at half the length; None if none has trained."""
        finite = {rate: loss for rate, loss in self.later_losses.items() if math.isfinite(loss)}
        return best_rate(finite) if finite else None

    @property
    def is_at_edge(self) -> bool:
        """Return whether the best rate is the lowest or the highest that was tried."""
        return self.best_rate is not None and is_at_edge(self.losses, self.best_rate)
