"""Build the callbacks of a config, and refuse what Lightning would refuse after the data."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch import nn

from attention_zoo.errors import Unsupported, UserError, check_positive
from attention_zoo.tasks.configuration.build import instantiate, refusal
from attention_zoo.tasks.configuration.signatures import find_target
from attention_zoo.tasks.data.base import PreparedData, data_ranks
from attention_zoo.tasks.task_spec import DIAGNOSTIC_DATA, TRANSLATION, task_spec
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback
from attention_zoo.tasks.training.task import Task
from attention_zoo.tasks.wording import pluralize

# The least values of options of `lightning.Trainer` that it takes as they are.
LEAST: dict[str, float] = {
    "max_steps": -1,
    "max_epochs": -1,
    "min_steps": 0,
    "min_epochs": 0,
    "num_nodes": 1,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "check_val_every_n_epoch": 1,
    "reload_dataloaders_every_n_epochs": 0,
}
TRAINING_LOSS = "train/loss"
TEXT_METRICS = ("val/bleu", "val/chrf", "val/exact_match")  # of translations that are generated


def create_callbacks(config: Mapping[str, Any]) -> list[Callback]:
    """Build the callbacks of the config; null leaves one out."""
    callbacks = []
    for name, node in (config["callbacks"] or {}).items():
        if node is None:
            continue
        callback = instantiate(node)
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name} must build a Callback, got {node['_target_']}.")
        callbacks.append(callback)
    return callbacks


def check_trainer(config: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """Return a Trainer as the config's options make it, or raise UserError for what it refuses."""
    options = config["trainer"]
    for name, least in LEAST.items():
        if options.get(name) is not None and options[name] < least:
            raise UserError(f"trainer.{name} must be at least {least}, got {options[name]}.")
    for name in ("max_steps", "max_epochs"):
        if options[name] == 0:
            raise UserError(f"trainer.{name}=0 trains nothing; choose 1 or more, or -1 for all.")
    if options.get("num_nodes", 1) > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & {*os.environ}:
        raise UserError(
            f"trainer.num_nodes={options['num_nodes']} would wait for other machines: start it "
            "with torchrun or SLURM, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each."
        )
    for name in ("val_check_interval", "limit_train_batches"):
        if isinstance(options.get(name), int | float) and options[name] <= 0:
            raise UserError(f"trainer.{name} must be above 0, got {options[name]}.")
    check_limits(options)
    if options.get("use_distributed_sampler"):
        raise Unsupported(
            "trainer.use_distributed_sampler=true would divide the batches once more, which the "
            "data module divides over the processes; leave it out."
        )
    if options.get("overfit_batches"):
        raise Unsupported(
            f"trainer.overfit_batches={options['overfit_batches']} would change the order of the "
            "batches, which is fixed here. Learn few lines with data.source.size, or with "
            "debug=overfit."
        )
    on_cpu = options["accelerator"] == "cpu" or (
        options["accelerator"] == "auto" and not torch.accelerator.is_available()
    )
    if on_cpu and str(options["precision"]) in ("16", "16-mixed"):
        # Lightning would warn, and train in bfloat16.
        raise Unsupported(
            f"trainer.precision={options['precision']} needs a GPU. On the CPU choose bf16-mixed "
            "or 32-true."
        )
    try:
        trainer: Trainer = instantiate(
            options,
            logger=False,
            callbacks=[*callbacks],
            enable_progress_bar=any(isinstance(x, ProgressBar) for x in callbacks),
            enable_checkpointing=any(isinstance(x, Checkpoint) for x in callbacks),
            default_root_dir=config["paths"]["run"],
        )
    except ModuleNotFoundError as error:
        raise UserError(f"trainer needs a package that is not installed: {error}") from error
    if not isinstance(trainer, Trainer):
        raise UserError(f"trainer._target_ must be a lightning.Trainer, got {options['_target_']}.")
    return trainer


def check_limits(options: Mapping[str, Any]) -> None:
    """Refuse a clipping that is no number, and ends of a training that contradict each other."""
    if not math.isfinite(options.get("gradient_clip_val") or 0):
        raise UserError(
            f"trainer.gradient_clip_val must be finite, got {options['gradient_clip_val']}; null "
            "does not clip."
        )
    for unit in ("steps", "epochs"):
        least, most = options.get(f"min_{unit}"), options.get(f"max_{unit}")
        if least is not None and most is not None and 0 <= most < least:
            raise UserError(
                f"trainer.min_{unit} must be at most trainer.max_{unit}, got {least} and {most}."
            )
    if str(options.get("max_time") or "").strip("0:") == "" and options.get("max_time"):
        raise UserError(f"trainer.max_time={options['max_time']} trains nothing; give more time.")


def check_training(config: Mapping[str, Any]) -> Trainer:
    """Refuse callbacks, monitors and options of the Trainer that cannot work; return a Trainer."""
    callbacks = create_callbacks(config)
    trainer = check_trainer(config, callbacks)
    eps, smallest = config["optimizer"].get("eps"), torch.finfo(torch.float16).smallest_normal
    if trainer.precision == "16-true" and isinstance(eps, int | float) and eps < smallest:
        raise Unsupported(
            f"trainer.precision=16-true needs optimizer.eps of at least {smallest:.1e}, the "
            f"smallest number of float16, got {eps}: the loss would become nan. Give "
            "optimizer.eps=1e-4, or choose bf16-true."
        )
    task = find_target(config["task"]["_target_"], "task")
    if not isinstance(task, type) or not issubclass(task, Task):
        raise UserError(f"task._target_ must be a Task, got {config['task']['_target_']}.")
    if task.__module__.startswith("attention_zoo."):
        check_monitors(config, callbacks)
    for name, node in (config["logger"] or {}).items():
        if node is not None and "flush_logs_every_n_steps" in node:
            check_positive(
                **{f"logger.{name}.flush_logs_every_n_steps": node["flush_logs_every_n_steps"]}
            )
    check_compile(config)
    return trainer


def check_compile(config: Mapping[str, Any]) -> None:
    """Refuse arguments of torch.compile that it refuses itself."""
    if isinstance(config["compile"], dict):
        try:
            torch.compile(nn.Identity(), **config["compile"])
        except (TypeError, RuntimeError, ValueError) as error:
            raise refusal("compile", error) from error


def check_callbacks(trainer: Trainer, task: Task) -> None:
    """Refuse callbacks that cannot inspect the model of a task, before it is trained."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, InspectionCallback):
            callback.check_training(trainer, task)


def check_monitors(config: Mapping[str, Any], callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that look at what is never logged, or later than they look."""
    legal = [*monitored_metrics(config), TRAINING_LOSS]
    options = config["trainer"]
    interval, every = options["val_check_interval"], options["log_every_n_steps"]
    for callback in callbacks:
        monitor, name = getattr(callback, "monitor", None), type(callback).__name__
        if monitor is not None and monitor not in legal:
            raise UserError(
                f"{name} cannot have monitor={monitor}, which is not logged. Choices: "
                f"{', '.join(legal)}."
            )
        if monitor == TRAINING_LOSS and isinstance(interval, int) and every is not None:
            steps = max(1, interval // options.get("accumulate_grad_batches", 1))
            if every > steps:
                raise UserError(
                    f"{name} with monitor={monitor} needs it at each validation, but it is logged "
                    f"every {every} steps and validation is every {steps}; give "
                    f"trainer.log_every_n_steps={steps}."
                )


def monitored_metrics(config: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a validation."""
    if task_spec(config) == TRANSLATION:
        return ["val/loss", "val/perplexity", "val/bits_per_byte", *TEXT_METRICS]
    if config["data"]["_target_"] == DIAGNOSTIC_DATA:
        return ["val/loss", "val/accuracy", "val/exact_match"]
    return ["val/loss", "val/perplexity", "val/bits_per_byte"]


def monitors_text(callbacks: list[Callback]) -> bool:
    """Return whether a callback looks at a metric of generated translations."""
    return any(getattr(x, "monitor", None) in TEXT_METRICS for x in callbacks)


def check_batches(trainer: Trainer, data: PreparedData) -> str | None:
    """Refuse options that count more batches than an epoch has; return what else is to be said.

    An optimizer step ends with the epoch: the last one of an epoch has the remaining batches.
    """
    wanted, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    batches = -(-len(data.train_dataloader()) // data_ranks(trainer)["world_size"])
    batches = max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
    options = {"accumulate_grad_batches": wanted}
    if trainer.check_val_every_n_epoch is not None and isinstance(trainer.val_check_interval, int):
        options["val_check_interval"] = trainer.val_check_interval
    size = "tokens_per_batch" if hasattr(data, "tokens_per_batch") else "batch_size"
    for name, value in options.items():
        if value > batches:
            raise UserError(
                f"trainer.{name}={value} needs as many batches in an epoch, which has {batches} in "
                f"a process. Choose at most {batches}, or make smaller batches with a lower "
                f"data.{size}."
            )
    if batches % wanted == 0:
        return None
    return (
        f"An epoch has {pluralize(batches, 'batch', 'es')} in a process, so its last step "
        f"accumulates {batches % wanted} in place of {wanted}."
    )
