"""`attention-zoo benchmark` as a sweeper of Hydra's: it measures the models of all combinations."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.benchmark.options import check_benchmark_options, check_files
from attention_zoo.tasks.comparison.candidate_configs import combine_overrides, short_name
from attention_zoo.tasks.comparison.options import complete_config_of_job
from attention_zoo.tasks.configuration.override_grammar import last_values
from attention_zoo.tasks.configuration.overrides import is_used_in_benchmark
from attention_zoo.tasks.folder_lock import locked_folder
from attention_zoo.tasks.run_folder import first_sentence
from attention_zoo.tasks.views.console import print_line

LANGUAGE_DATA = "attention_zoo.tasks.data.language_data.LanguageData"
NAMES = ("attention", "position", "stack")  # the groups that name a model without a sweep


class BenchmarkSweeper(Sweeper):
    """Measure the model of each combination of overrides, in one process and in turn."""

    config: DictConfig

    def __init__(self, own_options: Sequence[str], params: Mapping[str, Any] | None = None) -> None:
        self.own_options = own_options  # which models do not have
        # What the file of an experiment sweeps over, but for options of trainings.
        swept = [f"{key}={x}" for key, x in (params or {}).items()]
        self.swept_options = [x for x in swept if is_used_in_benchmark(x)]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        check_benchmark_options(config)
        self.loader = hydra_context.config_loader
        self.config = config
        self.console = Console()

    def sweep(self, arguments: list[str]) -> None:
        """Measure all combinations, and write and print the results."""
        # Imported here, as models need torch, and pictures matplotlib.
        from attention_zoo.tasks.benchmark.answer import answer, check_exponents
        from attention_zoo.tasks.benchmark.rounds import measure_models
        from attention_zoo.tasks.commands.warning_filters import silence_libraries

        silence_libraries()
        configs, refused = self.complete(self.compose(arguments))
        check_files(self.config)
        for label, reason in refused.items():
            print_line(self.console, f"{label} is left out: {first_sentence(reason)}.")
        folder = Path(self.config.hydra.sweep.dir)
        with locked_folder(folder, "hydra.sweep.dir"):
            benchmark = measure_models(configs, self.config, self.console)
            benchmark.refused = refused
            benchmark.command = shlex.join(["attention-zoo", "benchmark", *arguments])
            answer(benchmark, folder, self.config.output, self.console)
        check_exponents(benchmark, self.config.max_linear_exponent)

    def compose(self, arguments: Sequence[str]) -> dict[str, tuple[list[str], DictConfig]]:
        """Return the overrides and the composed config of each combination, by its label."""
        swept, combinations = combine_overrides(
            last_values([*self.swept_options, *arguments]), self.loader, self.own_options
        )
        if several := next((x for x in swept if x in self.own_options), None):
            raise UserError(
                f"benchmark measures all entries alike, got several values of {several}; give one."
            )
        composed = {}
        for overrides in combinations:
            config = self.loader.load_sweep_config(self.config, [*overrides])
            # Options that depend on the length of training have the longest one. Data are not read.
            length = max(self.config.lengths)
            data = {"_target_": LANGUAGE_DATA, "_partial_": True, "context_length": length}
            with open_dict(config):
                config.data = OmegaConf.create(data)
            names = swept or NAMES
            chosen = [short_name(x) for x in overrides if x.partition("=")[0] in names]
            label = " ".join(chosen) or str(config.hydra.runtime.choices["attention"])
            composed[label] = overrides, config
        return composed

    def complete(
        self, composed: Mapping[str, tuple[list[str], DictConfig]]
    ) -> tuple[dict[str, tuple[list[str], dict[str, Any]]], dict[str, str]]:
        """Return the overrides and the complete config of each model, and why others are refused.

        Raises:
            UserError: the refusal of the first model if all are refused: then an option is wrong.
        """
        from attention_zoo.tasks.benchmark.rounds import check_model

        configs, refusals = {}, {}
        for label, (overrides, config) in composed.items():
            try:
                complete = complete_config_of_job(overrides, config, self.own_options)
                check_model(complete, max(self.config.lengths))
                configs[label] = overrides, complete
            except UserError as error:
                refusals[label] = error
        if not configs:
            raise next(iter(refusals.values()))
        return configs, {label: str(error) for label, error in refusals.items()}
