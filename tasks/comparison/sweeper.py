"""`attention-zoo compare` as a sweeper of Hydra's: it launches trials, then what they have found.

All decisions follow from the results in the folders of the jobs, so that the same command goes on
with a comparison that was cut off.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.candidate_configs import CandidateConfigs
from attention_zoo.tasks.comparison.options import (
    check_candidates,
    check_comparison_options,
    check_rates,
    check_scoreboard,
    complete_configs,
)
from attention_zoo.tasks.comparison.plan import (
    MEASURED_STEPS,
    Cost,
    Schedule,
    expected_seconds,
    parse_budget,
    print_plan,
    steps_within,
)
from attention_zoo.tasks.comparison.settings import RATE, describe_option_trials
from attention_zoo.tasks.comparison.trainings import Trainings, length, without
from attention_zoo.tasks.comparison.tuning import Tuner
from attention_zoo.tasks.configuration.resolved_config import hash_config
from attention_zoo.tasks.folder_lock import locked_folder
from attention_zoo.tasks.run_folder import PLAN, read_json, replace_text, unreadable
from attention_zoo.tasks.sweeps.launcher import LAUNCH_OPTIONS, ProcessesLauncher
from attention_zoo.tasks.views.console import print_line

# What a run must record for its cost, and options that only the answer depends on.
MEASURED = {"tokens_seen", "tokens_per_second", "steps", "training_flops_per_token"}
ANSWER_OPTIONS = ("dry_run", "reference", "scoreboard", "benchmark")


class ComparisonSweeper(Sweeper):
    """Tune each candidate with the same number of trials, and train the best ones with new seeds.

    The candidates are the jobs that a sweep of the same overrides would have. A short run of each
    measures its cost. Then come trials for a quarter of the full length: learning rates, two more
    beyond or around the best one, and options that the card names at the best rate, or still more
    rates. The best quarter of these settings, at least two, train again at full length, and the
    best of those with seeds that were not used before. All runs have a schedule of their own
    length, as the order of rates can change when the rate decays.
    """

    config: DictConfig

    def __init__(self, own_options: Sequence[str], params: Mapping[str, Any] | None = None) -> None:
        self.own_options = own_options  # which jobs do not have
        # What the file of an experiment sweeps over, but for the rates, which are tuned here.
        self.swept_options = [f"{k}={x}" for k, x in (params or {}).items() if k != RATE]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        check_comparison_options(config)
        self.budget = None if config.budget is None else parse_budget(config.budget)
        self.schedule = Schedule(
            trials=config.trials, option_trials=config.option_trials, seeds=config.seeds
        )
        self.loader = hydra_context.config_loader
        self.config = config
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if isinstance(launcher, ProcessesLauncher):
            launcher.is_quiet = True
        self.folder = Path(config.hydra.sweep.dir)
        self.console = Console()
        self.trainings = Trainings(launcher, config, self.console)
        self.tuner = Tuner(self.trainings, self.schedule, float(config.rate_factor))

    def sweep(self, arguments: list[str]) -> None:
        """Run the comparison in its folder, and write and print its answer."""
        candidates = self.create_candidates(arguments)
        with locked_folder(self.folder, "hydra.sweep.dir"):
            self.compare(candidates)

    def compare(self, candidates: Sequence[Candidate]) -> None:
        """Measure, tune and confirm the candidates, and answer."""
        plan = self.read_plan()
        if self.config.scoreboard is not None:
            check_scoreboard(Path(self.config.scoreboard))
        self.measure(candidates)
        trained = [x for x in candidates if x.cost is not None]
        if len(trained) < min(2, len(candidates)):
            reasons = "; ".join(f"{x.label}: {x.reason}" for x in candidates if x.reason)
            raise UserError(f"compare needs two candidates that train. {reasons}")
        if self.config.reference not in (None, *(x.name for x in trained)):
            raise UserError(
                f"the reference must train, got reference={self.config.reference}, which was left "
                "out; name another."
            )
        steps = self.plan(trained, plan)
        if self.config.dry_run:
            return
        self.tuner.tune(trained, steps)
        if all(x.best_rate is None for x in trained):
            rates = sorted({rate for x in trained for rate in x.rate_losses})
            raise UserError(
                f"no candidate trains at any learning rate from {rates[0]:g} to {rates[-1]:g}: "
                "every trial diverged; give a lower optimizer.lr."
            )
        self.tuner.confirm(trained, steps, first_seed=self.seed + 1)
        # Imported here, as pictures need matplotlib.
        from attention_zoo.tasks.comparison.answer import answer

        schedule = {**asdict(self.schedule), "steps": steps, "rate_factor": self.config.rate_factor}
        answer(self.folder, candidates, schedule, self.config, self.console)

    def create_candidates(self, arguments: list[str]) -> list[Candidate]:
        """Return a candidate for each combination of what the overrides sweep over."""
        composed = CandidateConfigs(
            [*self.swept_options, *arguments], self.config, self.loader, self.own_options
        )
        self.seed = composed.shared_value("seed")
        self.max_steps = composed.shared_value("trainer.max_steps")
        self.data = str(composed.configs[0].hydra.runtime.choices["data"])
        if self.budget is None and (not isinstance(self.max_steps, int) or self.max_steps < 4):
            raise UserError(
                "compare needs budget=…, or a trainer.max_steps of at least 4, got "
                f"{self.max_steps}."
            )
        candidates = composed.create_candidates()
        for candidate in candidates:
            check_rates(candidate.center, self.schedule, self.config.rate_factor)
        check_candidates([x.label for x in candidates], composed.configs)
        complete = complete_configs(composed.overrides, composed.configs, self.own_options)
        if self.schedule.option_trials:
            # Imported here, as mechanisms need torch.
            from attention_zoo.tasks.comparison.search_spaces import search_space

            for candidate, config in zip(candidates, complete, strict=True):
                if config is not None:
                    candidate.search_space = search_space(config, candidate.overrides)
        names = dict.fromkeys(x.name for x in candidates)
        if self.config.reference not in (None, *names):
            raise UserError(
                f"reference must be one of {', '.join(names)}, got {self.config.reference}."
            )
        return candidates

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Train each candidate for some steps, to know what they cost, or why they cannot be."""
        overrides = [
            [*without(x.overrides, "logger"), *length(MEASURED_STEPS), "logger=none"]
            for x in candidates
        ]
        for candidate, folder in zip(
            candidates, self.trainings.run("cost", overrides), strict=True
        ):
            record, results = folder.read_job(), folder.read_results()
            if record is None or record.outcome != "trained" or record.seconds is None:
                candidate.reason = "it has no record" if record is None else str(record)
            elif results.keys() >= MEASURED:
                candidate.cost = Cost.of_run(results, record.seconds)
            else:
                missing = min(MEASURED - results.keys())
                candidate.reason = f"{folder.results_file} lacks {missing}; remove it, and repeat"
            if candidate.cost is None:
                print_line(self.console, f"{candidate.label} is left out: {candidate.reason}")

    def read_plan(self) -> dict[str, Any]:
        """Return the plan of an earlier launch, empty if there is none.

        Raises:
            UserError: it was made for other options.
            BadInput: it is damaged.
        """
        path = self.folder / PLAN
        plan = read_json(path)
        options: Any = OmegaConf.to_container(self.config, resolve=False)
        self.made_of = hash_config(options, without=(*LAUNCH_OPTIONS, *ANSWER_OPTIONS))
        if plan and not (isinstance(plan.get("steps"), int) and "options" in plan):
            raise unreadable(path, "the plan of a comparison", "of another form")
        if plan and plan["options"] != self.made_of:
            then, now = plan.get("overrides", []), list(self.config.hydra.overrides.task)
            raise UserError(
                f"{path} was made for other options: it had "
                f"{' '.join(x for x in then if x not in now) or 'the same overrides'}, and now "
                f"{' '.join(x for x in now if x not in then) or 'other values behind them'}. "
                "Repeat the command that began the comparison, or choose another hydra.sweep.dir."
            )
        return plan

    def plan(self, candidates: Sequence[Candidate], earlier: Mapping[str, Any]) -> int:
        """Return the steps at full length, those of an earlier launch if there are any."""
        path = self.folder / PLAN
        # Imported here, as it compares runs, which takes matplotlib.
        from attention_zoo.tasks.comparison.noise import describe_power

        costs = [x.cost for x in candidates if x.cost is not None]
        jobs = self.config.jobs
        if earlier:
            steps = int(earlier["steps"])
        elif self.budget is None:
            steps = self.max_steps
        else:
            steps = steps_within(self.budget, costs, self.schedule, jobs=jobs)
        overrides = [*self.config.hydra.overrides.task]
        made = {"steps": steps, "options": self.made_of, "overrides": overrides}
        replace_text(path, json.dumps(made) + "\n")
        print_plan(
            self.console,
            [x.label for x in candidates],
            costs,
            self.schedule,
            steps,
            expected_seconds(steps, costs, self.schedule, jobs=jobs),
            describe_power(
                self.data,
                dim=candidates[-1].width,
                steps=steps,
                seeds=self.schedule.seeds,
                rows=len(dict.fromkeys(x.name for x in candidates)),
                named_reference=self.config.reference is not None,
            ),
        )
        count = self.schedule.option_trials
        options = {x.label: x.search_space[:count] for x in candidates}
        for sentence in describe_option_trials(options, count):
            print_line(self.console, sentence.replace("`", ""))
        return steps
