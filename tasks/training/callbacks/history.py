"""The loss curves of a run: losses by step and by tokens seen."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_zoo.tasks.training.callbacks.throughput import Throughput

Point = tuple[int, int, float]


class History(Callback):
    """Record `train/loss` whenever it is logged, and `val/loss` at every validation.

    Checkpoints hold the points, so that a resumed run has the whole curve.

    Args:
        throughput: counts the tokens; it must come before this among the callbacks.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        # By loss: step, tokens seen by then, value.
        self.points: dict[str, list[Point]] = {"train/loss": [], "val/loss": []}

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = state_dict["points"]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self.add_point(trainer, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.add_point(trainer, "val/loss")

    def add_point(self, trainer: Trainer, name: str) -> None:
        """Add a point, unless the step has one."""
        points, step = self.points[name], trainer.global_step
        value = trainer.callback_metrics.get(name)
        if value is not None and not (points and points[-1][0] == step):
            points.append((step, self.throughput.tokens, value.item()))

    def loss_curves(self, max_points: int = 400) -> dict[str, list[list[int | float | None]]]:
        """Return the points of each loss, [step, tokens, value], at even intervals up to the last.

        A value that is not finite is None.
        """
        curves: dict[str, list[list[int | float | None]]] = {}
        for name, points in self.points.items():
            stride = max(1, math.ceil(len(points) / max_points))
            curves[name] = [
                [step, tokens, value if math.isfinite(value) else None]
                for step, tokens, value in points[::-stride][::-1]
            ]
        return curves
