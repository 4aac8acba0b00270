"""`hparams_search=optuna`: the jobs of a sweep are the trials of an Optuna study.

The bridge between Hydra and Optuna that Hydra ships is bound to Optuna 2, whose storage does not
work with today's SQLAlchemy, and does not know the trials of a launch that was cut off.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from attention_zoo.errors import UserError
from attention_zoo.tasks.sweeps.jobs import say
from attention_zoo.tasks.sweeps.launcher import OF_THE_LAUNCH, require_count
from attention_zoo.tasks.training.results import fingerprint

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

CONDITIONS = "conditions"


class TrialsSweeper(Sweeper):
    """Minimises what the jobs return, `val/loss`, by Optuna's TPE sampler (Bergstra et al. 2011).

    A trial is a job of its number. One that fails, diverges or is refused has failed for Optuna
    too, and does not end the search. What was cut off is run first when the study goes on: as it
    has the number and values that it had, it goes on from its checkpoint. One launch at a time may
    work on a study.

    Args:
        storage: URL of the database, as Optuna has it.
        study_name: trials of one name are one study. Null: of the hash of all that is searched, so
            that the same command goes on with the same study.
        n_trials: how many the study has when the search ends, those of earlier launches among them.
        params: name of an option to what to try, in Hydra's grammar: `interval(0, 1)`,
            `tag(log, interval(1e-4, 1e-2))`, `int(interval(1, 8))`, `choice(a, b)`. Overrides on
            the command line add to them, and replace them.
    """

    config: DictConfig
    launcher: Launcher

    def __init__(
        self, storage: str, study_name: str | None, n_trials: int, params: Mapping[str, Any] | None
    ) -> None:
        self.storage = storage
        self.study_name = study_name
        self.n_trials = n_trials
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        if find_spec("optuna") is None:
            raise UserError(
                "hparams_search=optuna needs a package that is not installed; "
                "pip install 'attention-zoo[optuna]'."
            )
        require_count("hydra.sweeper.n_trials", self.n_trials)
        require_count("jobs", config.jobs)
        given = [f"{name}={value}" for name, value in self.params.items()]
        parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        overrides = parser.parse_overrides([*given, *config.hydra.overrides.task])
        # The last one of a name is meant.
        by_name = {override.get_key_element(): override for override in overrides}
        self.space = {n: searched(o) for n, o in by_name.items() if o.is_sweep_override()}
        self.decided_options = [
            f"{name}={override.get_value_element_as_str()}"
            for name, override in by_name.items()
            if name not in self.space
        ]
        if not self.space or "seed" in self.space:
            raise UserError(
                f"a search needs options to search, other than the seed, got "
                f"{', '.join(self.space) or 'none'}; give some, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))'."
            )
        composed = hydra_context.config_loader.load_sweep_config(config, self.decided_options)
        self.seed = composed.seed
        plain: Any = OmegaConf.to_container(composed, resolve=False)
        space = {name: str(distribution) for name, distribution in self.space.items()}
        self.conditions = fingerprint(plain | {"space": space}, without=OF_THE_LAUNCH)
        if self.study_name is None:
            self.study_name = f"{composed.task.name}-{self.conditions[:8]}"
            # As if it had been given: jobs and their folders are composed anew by launchers.
            with open_dict(config):
                config.hydra.sweeper.study_name = self.study_name
                config.hydra.overrides.hydra.append(f"hydra.sweeper.study_name={self.study_name}")
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until there are `n_trials`; what was cut off first.

        Raises:
            UserError: the study's trials were composed from something else, none of all has a
                result, or, with `fail_fast`, one has failed.
        """
        from rich.console import Console

        console = Console()
        study = self.open_study()
        done = sum(trial.state.is_finished() for trial in study.trials)
        say(console, f"study {study.study_name} in {self.storage}: {done} trials are done")
        for numbers in self.batches(study):
            overrides = [self.overrides(study, number) for number in numbers]
            returns = self.launcher.launch(overrides, initial_job_idx=numbers[0])
            tell(study, numbers, returns, fail_fast=self.config.fail_fast)
        if not any(trial.value is not None for trial in study.trials):
            raise UserError(
                f"none of the {len(study.trials)} trials has a val/loss; their job.log, in "
                f"{self.config.hydra.sweep.dir}, say why."
            )
        best = study.best_trial
        words = " ".join(f"{name}={value}" for name, value in best.params.items())
        count = len(study.trials)
        say(console, f"Best of {count} trials: {best.number}, val/loss {best.value:.4f}: {words}")
        return best.value

    def open_study(self) -> "Study":
        import optuna
        from sqlalchemy.engine import make_url

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = make_url(self.storage)
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=self.storage, study_name=self.study_name, load_if_exists=True
        )
        # Not the same draws again, where a study goes on.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        before = study.user_attrs.get(CONDITIONS)
        if before not in (None, self.conditions):
            raise UserError(
                f"the trials of study {self.study_name} in {self.storage} were composed from "
                "something else, or searched another space. Go on with the command that began it, "
                "or choose another hydra.sweeper.study_name."
            )
        study.set_user_attr(CONDITIONS, self.conditions)
        return study

    def batches(self, study: "Study") -> Iterator[Sequence[int]]:
        """Numbers of trials to run at a time, each batch one without gaps."""
        for trial in study.trials:
            if not trial.state.is_finished():
                yield [trial.number]
        while (missing := self.n_trials - len(study.trials)) > 0:
            slots = min(self.config.jobs, missing)
            yield [study.ask(self.space).number for _ in range(slots)]

    def overrides(self, study: "Study", number: int) -> list[str]:
        params = study.trials[number].params
        return [*self.decided_options, *(f"{name}={value}" for name, value in params.items())]


def searched(override: Override) -> "BaseDistribution":
    """What Optuna may try for an option: numbers of an interval, or one of several words."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if override.is_discrete_sweep():
        return CategoricalDistribution([str(x) for x in override.sweep_string_iterator()])
    interval: Any = override.value()
    of_integers = isinstance(interval.start, int) and isinstance(interval.end, int)
    distribution = IntDistribution if of_integers else FloatDistribution
    return distribution(interval.start, interval.end, log="log" in interval.tags)


def tell(
    study: "Study", numbers: Sequence[int], returns: Sequence[JobReturn], *, fail_fast: bool
) -> None:
    """Tell a study what came of its trials.

    Raises:
        UserError: one has failed, and `fail_fast` is set; it is tried again when the study goes on.
    """
    from optuna.trial import TrialState

    for number, result in zip(numbers, returns, strict=True):
        if fail_fast and result.status is JobStatus.FAILED:
            # Whatever it is, to ask for the value raises it.
            _ = result.return_value
        value = result.return_value if result.status is JobStatus.COMPLETED else None
        if value is None:
            study.tell(number, state=TrialState.FAIL)
        else:
            study.tell(number, value)
