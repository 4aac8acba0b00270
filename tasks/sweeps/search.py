"""`hparams_search=optuna`: the jobs of a sweep are the trials of an Optuna study.

Hydra's own Optuna sweeper needs Optuna 2, whose storage does not work with today's SQLAlchemy, and
does not go on with a launch that was cut off.
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
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.resolved_config import hash_config
from attention_zoo.tasks.folder_lock import locked_folder
from attention_zoo.tasks.run_folder import JOB_LOG
from attention_zoo.tasks.sweeps.launcher import LAUNCH_OPTIONS, require_count
from attention_zoo.tasks.task_spec import task_spec
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.wording import pluralize

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

CONFIG_HASH = "conditions"  # the attribute of a study that holds it


class TrialsSweeper(Sweeper):
    """Minimise what the jobs return, `val/loss`, by Optuna's TPE sampler (Bergstra et al. 2011).

    A trial is the job of the same number. A job that fails, diverges or is refused is a failed
    trial, and does not end the search. A trial that was cut off runs first when the study goes on,
    with its number and values, and so from its checkpoint. One launch at a time may use a study.

    Args:
        storage: URL of the database, as Optuna takes it.
        study_name: name of the study. Null: a hash of the config and of the search space, so that
            the same command goes on with the same study.
        n_trials: number of trials that end the search, those of earlier launches included.
        params: option to the values to try, in Hydra's grammar: `interval(0, 1)`,
            `tag(log, interval(1e-4, 1e-2))`, `int(interval(1, 8))`, `choice(a, b)`. Overrides on
            the command line add to them or replace them.
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
        loader = hydra_context.config_loader
        self.parse_overrides(OverridesParser.create(config_loader=loader), config)
        composed = loader.load_sweep_config(config, self.fixed_overrides)
        self.seed = composed.seed
        container: Any = OmegaConf.to_container(composed, resolve=False)
        space = {name: str(distribution) for name, distribution in self.search_space.items()}
        self.config_hash = hash_config(container | {"space": space}, without=LAUNCH_OPTIONS)
        if self.study_name is None:
            self.study_name = f"{task_spec(container).name}-{self.config_hash[:8]}"
            # As if the user had chosen it: launchers compose jobs and their folders anew.
            with open_dict(config):
                config.hydra.sweeper.study_name = self.study_name
                config.hydra.overrides.hydra.append(f"hydra.sweeper.study_name={self.study_name}")
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def parse_overrides(self, parser: OverridesParser, config: DictConfig) -> None:
        """Divide the overrides into the search space and those that all trials share."""
        params = [f"{name}={value}" for name, value in self.params.items()]
        parsed = parser.parse_overrides([*params, *config.hydra.overrides.task])
        # The last override of an option holds.
        overrides = {override.get_key_element(): override for override in parsed}
        searched = {name: x for name, x in overrides.items() if x.is_sweep_override()}
        self.search_space = {name: create_distribution(x) for name, x in searched.items()}
        fixed = [(name, x) for name, x in overrides.items() if name not in searched]
        self.fixed_overrides = [f"{name}={x.get_value_element_as_str()}" for name, x in fixed]
        if not self.search_space or "seed" in self.search_space:
            raise UserError(
                f"a search needs options to search, other than the seed, got "
                f"{', '.join(self.search_space) or 'none'}; give some, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))'."
            )

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until there are `n_trials`, first those that were cut off."""
        with locked_folder(Path(self.config.hydra.sweep.dir), "hydra.sweep.dir"):
            return self.search()

    def search(self) -> Any:
        """Run the trials, and return the lowest validation loss."""
        console = Console()
        study = self.open_study()
        done = sum(trial.state.is_finished() for trial in study.trials)
        finished = pluralize(done, "finished trial")
        print_line(console, f"study {study.study_name} in {self.storage}: {finished}")
        for numbers in self.draw_batches(study):
            overrides = [self.trial_overrides(study, number) for number in numbers]
            returns = self.launcher.launch(overrides, initial_job_idx=numbers[0])
            tell_results(study, numbers, returns, fail_fast=self.config.fail_fast)
        count = len(study.trials)
        if not any(trial.value is not None for trial in study.trials):
            raise UserError(
                f"no trial of {count} has a val/loss; the reasons are in their {JOB_LOG}, in "
                f"{self.config.hydra.sweep.dir}."
            )
        best = study.best_trial
        values = " ".join(f"{name}={value}" for name, value in best.params.items())
        score = f"val/loss {best.value:.4f}"
        trials = pluralize(count, "trial")
        print_line(console, f"Best of {trials}: {best.number}, {score}: {values}")
        return best.value

    def open_study(self) -> "Study":
        """Create the study, or load it from its storage if its config and space are the same."""
        import optuna
        from sqlalchemy.engine import make_url

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = make_url(self.storage)
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=self.storage, study_name=self.study_name, load_if_exists=True
        )
        # A study that goes on must not repeat its draws.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        if study.user_attrs.get(CONFIG_HASH) not in (None, self.config_hash):
            raise UserError(
                f"the trials of study {self.study_name} in {self.storage} were composed of "
                "something else, or searched another space. Repeat the command that began it, or "
                "choose another hydra.sweeper.study_name."
            )
        study.set_user_attr(CONFIG_HASH, self.config_hash)
        return study

    def draw_batches(self, study: "Study") -> Iterator[Sequence[int]]:
        """Yield the consecutive numbers of trials to run at a time."""
        for trial in study.trials:
            if not trial.state.is_finished():
                yield [trial.number]
        while (missing := self.n_trials - len(study.trials)) > 0:
            size = min(self.config.jobs, missing)
            yield [study.ask(self.search_space).number for _ in range(size)]

    def trial_overrides(self, study: "Study", number: int) -> list[str]:
        """Return the overrides of a trial: those of all trials, and its values."""
        params = study.trials[number].params
        return [*self.fixed_overrides, *(f"{name}={value}" for name, value in params.items())]


def create_distribution(override: Override) -> "BaseDistribution":
    """Return what Optuna may try for an option: numbers of an interval, or some values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if override.is_discrete_sweep():
        return CategoricalDistribution([str(x) for x in override.sweep_string_iterator()])
    interval: Any = override.value()
    has_integers = isinstance(interval.start, int) and isinstance(interval.end, int)
    distribution = IntDistribution if has_integers else FloatDistribution
    return distribution(interval.start, interval.end, log="log" in interval.tags)


def tell_results(
    study: "Study", numbers: Sequence[int], returns: Sequence[JobReturn], *, fail_fast: bool
) -> None:
    """Tell a study the results of its trials, up to the first that failed with `fail_fast`."""
    from optuna.trial import TrialState

    for number, result in zip(numbers, returns, strict=True):
        if fail_fast and result.status is JobStatus.FAILED:
            _ = result.return_value  # Reading an error raises it; the trial runs again later.
        value = result.return_value if result.status is JobStatus.COMPLETED else None
        study.tell(number, value, state=TrialState.FAIL if value is None else None)
