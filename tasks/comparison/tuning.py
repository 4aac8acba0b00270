"""Tune the candidates of a comparison alike, and train the best setting of each with new seeds."""

import math
from collections.abc import Sequence

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.plan import Schedule
from attention_zoo.tasks.comparison.rates import (
    FURTHER,
    best_rate,
    first_rates,
    further_rates,
    is_at_edge,
)
from attention_zoo.tasks.comparison.settings import Setting, best_settings
from attention_zoo.tasks.comparison.trainings import Trainings, length, trial_overrides, without
from attention_zoo.tasks.run_folder import JOB_LOG, RunFolder


class Tuner:
    """Finds the best setting of each candidate by trials with one seed.

    Args:
        factor: between neighbouring learning rates of the first trials.
    """

    def __init__(self, trainings: Trainings, schedule: Schedule, factor: float) -> None:
        self.trainings, self.schedule, self.factor = trainings, schedule, factor

    def tune(self, candidates: Sequence[Candidate], steps: int) -> None:
        """Find the best setting of each candidate; `steps` are those at full length."""
        count = self.schedule.trials - FURTHER
        settings = [[*map(Setting, first_rates(x.center, count, self.factor))] for x in candidates]
        self.run_trials("tuning", candidates, settings, steps // 4)
        settings = [[*map(Setting, further_rates(x.rate_losses, self.factor))] for x in candidates]
        self.run_trials("tuning", candidates, settings, steps // 4)
        for done in range(0, self.schedule.option_trials, FURTHER):
            count = min(FURTHER, self.schedule.option_trials - done)
            settings = [self.option_settings(x, count) for x in candidates]
            self.run_trials("tuning", candidates, settings, steps // 4)
        settings = [best_settings(x.losses, self.schedule.kept) for x in candidates]
        self.run_trials("shortlist", candidates, settings, steps)

    def option_settings(self, candidate: Candidate, count: int) -> list[Setting]:
        """Return untried options at the best rate, then further rates if there are too few."""
        losses = candidate.rate_losses
        rate = best_rate(losses)
        untried: list[str] = []
        # At the edge a better rate may lie beyond, and where every rate diverges, others may not.
        if math.isfinite(losses[rate]) and not is_at_edge(losses, rate):
            untried = [x for x in candidate.search_space if x not in candidate.options_tried]
        options = [Setting(rate, x) for x in untried[:count]]
        rates = further_rates(losses, self.factor, count - len(options))
        return [*options, *map(Setting, rates)]

    def run_trials(
        self,
        phase: str,
        candidates: Sequence[Candidate],
        settings: Sequence[Sequence[Setting]],
        steps: int,
    ) -> None:
        """Train candidates with settings, and add their losses; a run without one has infinity."""
        trials = [(x, y) for x, each in zip(candidates, settings, strict=True) for y in each]
        overrides = [
            [*x.overrides, *length(steps), *trial_overrides(x.overrides), *y.overrides]
            for x, y in trials
        ]
        folders = self.trainings.run(phase, overrides)
        for (candidate, setting), folder in zip(trials, folders, strict=True):
            losses = candidate.full_losses if phase == "shortlist" else candidate.losses
            losses[setting] = self.read_loss(folder)

    def read_loss(self, folder: RunFolder) -> float:
        """Return the validation loss of a trial; infinity if it has diverged.

        Raises:
            UserError: it has failed.
            BadInput: it has trained, and its loss is missing.
        """
        again = f"run the command again with hydra.sweep.dir={self.trainings.folder}"
        record, results = folder.read_job(), folder.read_results()
        if record is None or record.outcome not in ("trained", "diverged"):
            raise UserError(
                f"a trial has no result: {folder.path} {record or 'is missing'}. Mend what its "
                f"{JOB_LOG} says, and {again}: it goes on."
            )
        if record.outcome == "trained" and "val/loss" not in results:
            raise BadInput(
                f"{folder.results_file} has no val/loss of a trial that trained; remove "
                f"{folder.path}, and {again}."
            )
        loss = results.get("val/loss")
        return math.inf if loss is None else loss

    def confirm(self, candidates: Sequence[Candidate], steps: int, first_seed: int) -> None:
        """Train each candidate with its best setting, and seeds that no trial had."""
        seeds = range(first_seed, first_seed + self.schedule.seeds)
        overrides = [
            [*without(x.overrides, "seed"), *length(steps), *best.overrides, f"seed={seed}"]
            for x in candidates
            if (best := x.best_setting) is not None
            for seed in seeds
        ]
        self.trainings.run("confirm", overrides)
