"""`attention-zoo compare` as a sweeper of Hydra's: it launches trials, then what they have found.

All decisions follow from the results in the folders of the jobs, so that the same command goes on
with a comparison that was cut off.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.options import (
    check_candidates,
    check_comparison_options,
    check_configs,
    check_rates,
    check_scoreboard,
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
from attention_zoo.tasks.comparison.rates import (
    FURTHER,
    best_rates,
    first_rates,
    further_rates,
)
from attention_zoo.tasks.configuration.resolved_config import hash_config
from attention_zoo.tasks.folder_lock import locked_folder
from attention_zoo.tasks.run_folder import (
    JOB_LOG,
    PLAN,
    RunFolder,
    read_json,
    replace_text,
    unreadable,
)
from attention_zoo.tasks.sweeps.launcher import LAUNCH_OPTIONS, ProcessesLauncher
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.wording import pluralize

# What the runs in the folders of a comparison are for.
PHASES = {
    "cost": "What a step costs",
    "tuning": "Learning rates",
    "halving": "The better half of the rates, for twice the length",
    "confirm": "The best rate, with new seeds",
}
RATE = "optimizer.lr"
# What a run must record for its cost, and options that only the answer depends on.
MEASURED = {"tokens_seen", "tokens_per_second", "steps", "training_flops_per_token"}
ANSWER_OPTIONS = ("dry_run", "reference", "scoreboard", "benchmark")
TRIAL = ("test=false", "lengths=[]")  # It is judged by val/loss alone.


class ComparisonSweeper(Sweeper):
    """Tune each candidate with the same number of trials, and train the best ones with new seeds.

    The candidates are the jobs that a sweep of the same overrides would have. A short run of each
    measures its cost. Then come trials of learning rates for a quarter of the full length, two more
    beyond or around the best one, half of them again for half the length, and the best one at full
    length with seeds that were not used before. All runs have a schedule of their own length, as
    the order of rates can change when the rate decays.
    """

    config: DictConfig
    launcher: Launcher

    def __init__(self, own_options: Sequence[str], params: Mapping[str, Any] | None = None) -> None:
        self.own_options = own_options  # which jobs do not have
        # What the file of an experiment sweeps over, but for the rates, which are tuned here.
        self.swept_options = [f"{k}={x}" for k, x in (params or {}).items() if k != RATE]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        check_comparison_options(config)
        self.budget = None if config.budget is None else parse_budget(config.budget)
        self.sizes = config.sizes
        self.schedule = Schedule(trials=config.trials, seeds=config.seeds)
        self.loader = hydra_context.config_loader
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if isinstance(self.launcher, ProcessesLauncher):
            self.launcher.is_quiet = True
        self.hydra_overrides = [*config.hydra.overrides.hydra]
        self.folder = Path(config.hydra.sweep.dir)
        self.next_number = 0
        self.console = Console()

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
        self.tune(trained, steps)
        if all(x.best_rate is None for x in trained):
            rates = sorted({rate for x in trained for rate in x.losses})
            raise UserError(
                f"no candidate trains at any learning rate from {rates[0]:g} to {rates[-1]:g}: "
                "every trial diverged; give a lower optimizer.lr."
            )
        self.confirm(trained, steps)
        # Imported here, as pictures need matplotlib.
        from attention_zoo.tasks.comparison.answer import answer

        schedule = {**asdict(self.schedule), "steps": steps, "rate_factor": self.config.rate_factor}
        answer(self.folder, candidates, schedule, self.config, self.console)

    def create_candidates(self, arguments: list[str]) -> list[Candidate]:
        """Return a candidate for each combination of what the overrides sweep over."""
        arguments = [*self.swept_options, *arguments]
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(arguments)
        swept = [x.get_key_element() for x in parsed if x.is_sweep_override()]
        for name in (x.lstrip("+") for x in swept):
            if name in (RATE, "seed", *self.own_options):
                raise UserError(
                    f"compare tunes {RATE} and repeats seeds itself, got several values of {name}; "
                    "give one."
                )
        options = [x for x in parsed if x.get_key_element() not in self.own_options]
        (combinations,) = BasicSweeper.split_arguments(options, None)
        # A scoreboard compares it with others.
        if len(combinations) < 2 and self.config.scoreboard is None:
            chosen = [x for x in arguments if x.partition("=")[0] not in self.own_options]
            raise UserError(
                "compare needs two candidates or more, such as attention=multi_head,linear, got "
                f"{' '.join(chosen) or 'no option with several values'}."
            )
        if self.sizes > 1:
            for name in {"model.dim", "model.ffn_dim"} & {x.lstrip("+") for x in swept}:
                raise UserError(f"sizes={self.sizes} varies {name} itself; give one value of it.")
            combinations = [
                sized for x in combinations for sized in at_widths(x, self.compose(x), self.sizes)
            ]
        configs = [self.compose(x) for x in combinations]
        self.seed = self.shared_value(configs, "seed")
        self.max_steps = self.shared_value(configs, "trainer.max_steps")
        self.data = str(configs[0].hydra.runtime.choices["data"])
        if self.budget is None and (not isinstance(self.max_steps, int) or self.max_steps < 4):
            raise UserError(
                "compare needs budget=…, or a trainer.max_steps of at least 4, got "
                f"{self.max_steps}."
            )
        candidates = []
        for overrides, config in zip(combinations, configs, strict=True):
            chosen = [x for x in overrides if x.partition("=")[0] in swept]
            center = OmegaConf.select(config, RATE)
            if not isinstance(center, int | float) or center <= 0:
                raise UserError(f"compare tunes {RATE}, got {center}; give a rate above 0.")
            name = " ".join(map(short_name, chosen))
            # Without sizes, all are compared with each other, also if they differ in width.
            width = (config if self.sizes > 1 else configs[0]).model.dim
            label = name if self.sizes == 1 else f"{name} dim={width}"
            check_rates(float(center), self.schedule.trials - FURTHER, self.config.rate_factor)
            candidates.append(Candidate(overrides, name, width, label, float(center)))
        check_candidates([x.label for x in candidates], configs)
        check_configs(combinations, configs, self.own_options)
        names = dict.fromkeys(x.name for x in candidates)
        if self.config.reference not in (None, *names):
            raise UserError(
                f"reference must be one of {', '.join(names)}, got {self.config.reference}."
            )
        return candidates

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of a job."""
        return self.loader.load_sweep_config(self.config, list(overrides))

    def shared_value(self, configs: Sequence[DictConfig], option: str) -> Any:
        """Return the value of an option that must be the same for all candidates."""
        values = dict.fromkeys(OmegaConf.select(config, option) for config in configs)
        if len(values) > 1:
            raise UserError(
                f"all candidates must have the same {option}, got {', '.join(map(str, values))}."
            )
        return next(iter(values))

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Train each candidate for some steps, to know what they cost, or why they cannot be."""
        overrides = [
            [*without(x.overrides, "logger"), *length(MEASURED_STEPS), "logger=none"]
            for x in candidates
        ]
        for candidate, folder in zip(candidates, self.run("cost", overrides), strict=True):
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
        return steps

    def tune(self, candidates: Sequence[Candidate], steps: int) -> None:
        """Find the best learning rate of each candidate."""
        factor = float(self.config.rate_factor)
        count = self.schedule.trials - FURTHER
        rates = [first_rates(x.center, count, factor) for x in candidates]
        self.run_trials("tuning", candidates, rates, steps // 4)
        rates = [further_rates(x.losses, factor) for x in candidates]
        self.run_trials("tuning", candidates, rates, steps // 4)
        rates = [best_rates(x.losses, self.schedule.kept) for x in candidates]
        self.run_trials("halving", candidates, rates, steps // 2)

    def run_trials(
        self,
        phase: str,
        candidates: Sequence[Candidate],
        rates: Sequence[Sequence[float]],
        steps: int,
    ) -> None:
        """Train candidates at rates, and add their losses; a run without a loss has infinity."""
        trials = [(x, rate) for x, each in zip(candidates, rates, strict=True) for rate in each]
        overrides = [[*x.overrides, *length(steps), *TRIAL, f"{RATE}={rate}"] for x, rate in trials]
        for (candidate, rate), folder in zip(trials, self.run(phase, overrides), strict=True):
            record = folder.read_job()
            if record is None or record.outcome not in ("trained", "diverged"):
                raise UserError(
                    f"a trial has no result: {folder.path} {record or 'is missing'}. Mend what its "
                    f"{JOB_LOG} says, and run the command again with "
                    f"hydra.sweep.dir={self.folder}: it goes on."
                )
            results = folder.read_results()
            if record.outcome == "trained" and "val/loss" not in results:
                raise BadInput(
                    f"{folder.results_file} has no val/loss of a trial that trained; remove "
                    f"{folder.path}, and run the command again with hydra.sweep.dir={self.folder}."
                )
            loss = results.get("val/loss")
            losses = candidate.later_losses if phase == "halving" else candidate.losses
            losses[rate] = math.inf if loss is None else loss

    def confirm(self, candidates: Sequence[Candidate], steps: int) -> None:
        """Train each candidate at its best rate with seeds that no trial had."""
        first = self.seed + 1
        seeds = range(first, first + self.schedule.seeds)
        overrides = [
            [*without(x.overrides, "seed"), *length(steps), f"{RATE}={x.best_rate}", f"seed={seed}"]
            for x in candidates
            if x.best_rate is not None
            for seed in seeds
        ]
        self.run("confirm", overrides)

    def run(self, phase: str, overrides: Sequence[Sequence[str]]) -> list[RunFolder]:
        """Run jobs in a folder of the comparison; return their folders."""
        first, self.next_number = self.next_number, self.next_number + len(overrides)
        print_line(self.console, f"{PHASES[phase]}: {pluralize(len(overrides), 'run')}")
        subdir = f"{phase}/${{hydra.job.num}}"
        # As if the user had chosen it: launchers compose jobs and their folders anew.
        override = f"hydra.sweep.subdir='{subdir}'"
        with open_dict(self.config):
            self.config.hydra.sweep.subdir = subdir
            self.config.hydra.overrides.hydra = [*self.hydra_overrides, override]
        self.launcher.launch([*map(list, overrides)], initial_job_idx=first)
        numbers = range(first, self.next_number)
        return [RunFolder(self.folder / phase / str(number)) for number in numbers]


def length(steps: int) -> list[str]:
    """Return the overrides of a training of a number of steps, validated four times."""
    return [
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=-1",
        f"trainer.val_check_interval={max(1, steps // 4)}",
        "trainer.check_val_every_n_epoch=null",  # The interval is that of all steps.
    ]


def at_widths(overrides: Sequence[str], config: DictConfig, sizes: int) -> list[list[str]]:
    """Return the overrides of a candidate at several widths, each twice the one before.

    The config's own width is the middle one, or that after the middle.
    """
    model, sized = config.model, []
    for power in range(-(sizes // 2), sizes - sizes // 2):
        widths = {"dim": model.dim * 2.0**power}
        if model.get("ffn_dim") is not None:
            widths["ffn_dim"] = model.ffn_dim * 2.0**power
        if any(x < 1 or x != int(x) for x in widths.values()):
            raise UserError(
                f"sizes={sizes} halves model.dim={model.dim} and model.ffn_dim="
                f"{model.get('ffn_dim')} {sizes // 2} times; give widths that can be."
            )
        kept = overrides
        for name in widths:
            kept = without(kept, f"model.{name}")
        sized.append([*kept, *(f"model.{name}={int(x)}" for name, x in widths.items())])
    return sized


def short_name(override: str) -> str:
    """Return what an override chooses: `linear` for attention=linear, `dim=64` for model.dim=64."""
    key, _, value = override.partition("=")
    return value if key in ("attention", "position", "stack") else f"{key.split('.')[-1]}={value}"


def without(overrides: Iterable[str], name: str) -> list[str]:
    """Return the overrides but those of an option."""
    return [x for x in overrides if x.lstrip("+").partition("=")[0] != name]
