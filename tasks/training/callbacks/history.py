"""The curve of a run: its losses by step and by tokens seen."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_zoo.tasks.training.callbacks.throughput import Throughput

Point = tuple[int, int, float]


class History(Callback):
    """Keeps `train/loss` where it is logged, every `trainer.log_every_n_steps` steps, and
    `val/loss` at every validation.

    It is saved in checkpoints, so that a resumed run has the whole curve.

    Args:
        throughput: counts the tokens; it must come before this among the callbacks.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        # Of each loss: step, tokens seen by then, value.
        self.points: dict[str, list[Point]] = {"train/loss": [], "val/loss": []}

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = state_dict["points"]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self.keep(trainer, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.keep(trainer, "val/loss")

    def keep(self, trainer: Trainer, name: str) -> None:
        """Add a point, unless the step has one."""
        points, step = self.points[name], trainer.global_step
        value = trainer.callback_metrics.get(name)
        if value is not None and not (points and points[-1][0] == step):
            points.append((step, self.throughput.tokens, value.item()))

    def curves(self, most: int = 400) -> dict[str, list[list[int | float | None]]]:
        """The points of each loss, [step, tokens, value], evenly thinned to at most so many.

        The last one is always among them. A value that is not finite is None.
        """
        return {name: thinned(points, most) for name, points in self.points.items()}


def thinned(points: list[Point], most: int) -> list[list[int | float | None]]:
    stride = max(1, math.ceil(len(points) / most))
    return [
        [step, tokens, value if math.isfinite(value) else None]
        for step, tokens, value in points[::-stride][::-1]
    ]
