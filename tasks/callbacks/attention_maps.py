"""Heat maps of what the model attends to, drawn from fixed probe lines."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from attention_zoo.tasks.callbacks.looking import Look
from attention_zoo.tasks.figures.heatmaps import attention_figure


class AttentionMaps(Look):
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
        super().__init__(every_n_validations=every_n_validations)
        self.folder = Path(folder)
        self.probes = probes
        self.paths: list[Path] = []

    def look(self, trainer: Trainer, task: Any) -> None:
        """Draw all probes; `paths` then names the files."""
        from attention_zoo.tasks.loggers import log_image

        self.folder.mkdir(parents=True, exist_ok=True)
        self.paths = []
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
