"""Restore what Lightning does not, so that a run that goes on is the run that never stopped."""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch.optim.lr_scheduler import LambdaLR


def rank_state(trainer: Trainer, running_sums: torch.Tensor) -> dict[str, Any]:
    """Return the random states of this rank, and its sums since losses were last logged."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    device = trainer.strategy.root_device
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "running_sums": running_sums.cpu().clone(),
    }


def restore_rank_state(
    state: Mapping[str, Any], trainer: Trainer, running_sums: torch.Tensor
) -> None:
    """Restore what `rank_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    device = trainer.strategy.root_device
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    running_sums.copy_(state["running_sums"])


def complete_progress(loop: dict[str, Any], *, is_validation_due: bool = False) -> None:
    """Let a training loop go on after the last batch in its state, within the epoch or after it.

    Lightning's counters tell by their differences in which hook of the batch the state was saved.
    It does not go on alike from all of them: after the last batch of an epoch it counts batches on,
    and after a step that ended the run, it takes the epoch for done. An epoch whose validation is
    due is not done.
    """
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    is_last_batch = batches["is_last_batch"]
    is_epoch_done = is_last_batch and not is_validation_due
    for part in ("total", "current"):
        set_counters(batches[part], batches[part]["ready"])
        started = epochs[part]["started"]
        set_counters(epochs[part], started if is_epoch_done else started - 1)
        if not is_epoch_done:
            epochs[part] |= {"ready": started, "started": started}
    validation = loop["epoch_loop.val_loop.batch_progress"]
    for counters in (validation["total"], validation["current"]):
        set_counters(counters, 0)
    if is_epoch_done:
        batches["is_last_batch"] = False
        set_counters(batches["current"], 0)
    if is_last_batch:
        # An epoch may be less than the loader has: trainer.limit_train_batches.
        loop["state_dict"].pop("combined_loader", None)


def set_counters(counters: dict[str, int], value: int) -> None:
    """Set all counters of a loop's progress: ready, started, processed and completed."""
    counters.update(dict.fromkeys(counters, value))


class ValidatingFirstLoop(_FitLoop):
    """A training loop that begins with the validation that its checkpoint lacks.

    The end of the epoch and of the training follow it, where they would have followed.
    """

    is_validation_due = True
    training_metrics: Mapping[str, float]  # of the step before the validation

    @property
    def done(self) -> bool:
        return not self.is_validation_due and super().done

    def on_run_start(self) -> None:
        super().on_run_start()
        task: Any = self.trainer.lightning_module
        task.state_before_validation = rank_state(self.trainer, task.running_sums)
        metrics = {name: torch.tensor(value) for name, value in self.training_metrics.items()}
        self.trainer.callback_metrics.update(metrics)
        # As Lightning validates between two batches.
        connector = self.trainer._logger_connector
        first_loop_iter = connector._first_loop_iter
        self.trainer.validating = True
        self.epoch_loop.val_loop.run()
        self.trainer.training = True
        connector._first_loop_iter = first_loop_iter

    def on_advance_start(self) -> None:
        self.is_validation_due = False
        super().on_advance_start()

    def advance(self) -> None:
        super().advance()
        self.epoch_loop.restarting = False  # Also after an epoch of which no batch was left.


def validate_first(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Let a training that goes on begin with a validation; `metrics` are those of its last step."""
    loop: Any = trainer.fit_loop
    loop.__class__ = ValidatingFirstLoop
    loop.training_metrics = metrics


def restore_position(trainer: Trainer) -> None:
    """Restore the position in the data where Lightning has not.

    It does so when it makes the loader. In a run that is measured in epochs it makes the loader
    before it reads the position, to count the steps for the schedule.
    """
    loop = trainer.fit_loop
    states, loop._combined_loader_states_to_load = loop._combined_loader_states_to_load, []
    if states and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(states)


def set_composed_rates(trainer: Trainer, composed_groups: list[dict[str, Any]] | None) -> None:
    """Give the restored optimizer the rate of the composed schedule at the restored step.

    A checkpoint holds the rate of the next step by its own schedule: 0 at the end of a run that now
    goes on. `composed_groups` are the options of the optimizer's groups where those composed now
    are to be used, and None where those of the checkpoint are.
    """
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if not isinstance(schedule, LambdaLR):
            continue
        groups = schedule.optimizer.param_groups
        if composed_groups is not None:
            for group, options in zip(groups, composed_groups, strict=True):
                group.update(options)
            schedule.base_lrs = [group["initial_lr"] for group in groups]
        factors = zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, rate, factor in factors:
            group["lr"] = rate * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]


def move_best_checkpoints(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Copy the best checkpoints so far into the folder of a run that goes on elsewhere.

    Lightning would forget their scores, and the run would take its next checkpoint for the best.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if state is None or state["dirpath"] in (None, callback.dirpath) or not callback.dirpath:
            continue
        folder = Path(callback.dirpath)

        def moved(path: str, folder: Path = folder) -> str:
            if path and Path(path).exists():
                folder.mkdir(parents=True, exist_ok=True)
                if trainer.is_global_zero:
                    shutil.copyfile(path, folder / Path(path).name)
                return str(folder / Path(path).name)
            return path

        state["best_k_models"] = {moved(x): score for x, score in state["best_k_models"].items()}
        for name in ("best_model_path", "kth_best_model_path"):
            state[name] = moved(state[name])
        state["dirpath"] = callback.dirpath
