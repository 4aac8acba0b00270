"""A configuration that is compared with others, and what its trials have shown."""

from dataclasses import dataclass, field

from attention_zoo.tasks.comparison.plan import Cost
from attention_zoo.tasks.comparison.rates import is_at_edge
from attention_zoo.tasks.comparison.settings import Setting, Trials, best_setting


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
    search_space: list[str] = field(default_factory=list)  # overrides that its cards name to try
    losses: dict[Setting, float] = field(default_factory=dict)  # at a quarter of the length
    full_losses: dict[Setting, float] = field(default_factory=dict)  # at full length, of the best

    @property
    def trials(self) -> Trials:
        """Return what the first trials have shown."""
        return Trials(self.label, self.losses, self.best_setting)

    @property
    def rate_losses(self) -> dict[float, float]:
        """Return the losses at a quarter of the length with the default options, by rate."""
        return self.trials.rate_losses

    @property
    def options_tried(self) -> list[str]:
        """Return the overrides of the trials with other options than the defaults."""
        return [x.option for x in self.losses if x.option]

    @property
    def best_setting(self) -> Setting | None:
        """Return the setting of the lowest loss at full length; None if none has trained."""
        return best_setting(self.full_losses)

    @property
    def best_rate(self) -> float | None:
        """Return the rate of the best setting; None if none has trained."""
        best = self.best_setting
        return None if best is None else best.rate

    @property
    def is_at_edge(self) -> bool:
        """Return whether the best rate is the lowest or the highest that was tried."""
        return self.best_rate is not None and is_at_edge(self.rate_losses, self.best_rate)
