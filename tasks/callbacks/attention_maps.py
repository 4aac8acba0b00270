"""Heat maps of what the model attends to, drawn from fixed probe lines."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_zoo.errors import UserError
from attention_zoo.tasks.callbacks.looking import due, undisturbed
from attention_zoo.tasks.figures import attention_figure


class AttentionMaps(Callback):
    """Draws every layer's cross-attention (of a language model, its self-attention) for each probe.

    Pictures go to `<folder>/probe-1-cross-layer-1.png` and so on, where newer ones replace older
    ones, and to every logger that takes images under `attention/probe-1/cross/layer-1`. Rank zero
    draws, at validations and at the end of training.

    Args:
        folder: where the PNG files go.
        every_n_validations: draw at every n-th validation; the end of training always draws.
        probes: number of the data module's probe lines to draw, from its first.

    Raises:
        UserError: `every_n_validations` is below 1.
    """

    def __init__(
        self, *, folder: str | Path, every_n_validations: int = 1, probes: int = 2
    ) -> None:
        if every_n_validations < 1:
            raise UserError(f"every_n_validations must be at least 1, got {every_n_validations}.")
        self.folder = Path(folder)
        self.every_n_validations = every_n_validations
        self.probes = probes
        self.paths: list[Path] = []
        self._validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        if due(trainer, self._validations, self.every_n_validations):
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, task: Any) -> None:
        """Draw all probes with the weights as they are; `paths` then names the files."""
        if not trainer.is_global_zero:
            return
        from attention_zoo.tasks.loggers import log_image

        self.folder.mkdir(parents=True, exist_ok=True)
        self.paths = []
        with undisturbed(task):
            probes = trainer.datamodule.probes[: self.probes]  # type: ignore[attr-defined]
            for number, line in enumerate(probes, start=1):
                reading = task.attend(line)
                role = "cross" if "cross" in reading.maps else "decoder"
                for layer in range(len(reading.maps[role])):
                    path = self.folder / f"probe-{number}-{role}-layer-{layer + 1}.png"
                    attention_figure(reading, role, layer).savefig(path)
                    key = f"attention/probe-{number}/{role}/layer-{layer + 1}"
                    log_image(trainer.loggers, key, path, trainer.global_step)
                    self.paths.append(path)
