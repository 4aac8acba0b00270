"""`hydra/sweeper=basic`: a job for each combination of the values that overrides give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from attention_zoo.tasks.folder_lock import locked_folder


class GridSweeper(Sweeper):
    """Hydra's sweeper, in a folder that no other launch writes to meanwhile."""

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None) -> None:
        # Hydra loads the modules of its plugins anew, so that a class imported earlier is another.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        self.sweeper = BasicSweeper(max_batch_size, params)  # type: ignore[arg-type]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs of all combinations."""
        with locked_folder(self.folder, "hydra.sweep.dir"):
            return self.sweeper.sweep(arguments)
