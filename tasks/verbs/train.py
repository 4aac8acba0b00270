"""`attention-zoo train`: compose, train, score, and leave a run folder behind."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.base import Task
from attention_zoo.tasks.build import build_task, check, instantiate, parameter_counts
from attention_zoo.tasks.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.callbacks.samples import Samples
from attention_zoo.tasks.callbacks.throughput import Throughput
from attention_zoo.tasks.checkpoints import newest_checkpoint, read_checkpoint
from attention_zoo.tasks.composition import Call
from attention_zoo.tasks.loggers import create_loggers, finish, flat_config, log_summary
from attention_zoo.tasks.noise import quiet
from attention_zoo.tasks.results import (
    collect_manifest,
    print_config_tree,
    print_report,
    print_results,
    print_samples,
    write_results,
)


def run(config: dict[str, Any], call: Call) -> float | None:
    """Train what the config says.

    Returns:
        The validation loss, for sweepers that minimise it.
    """
    check(config)
    quiet()
    console = Console(quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    print_config_tree(console, {k: v for k, v in config.items() if k != "choices"})
    seed_everything(config["seed"], workers=True, verbose=False)
    data = instantiate(config["data"])
    with console.status("preparing the data"):
        data.prepare_data()
        data.setup()
    print_report(console, data.report)
    task = build_task(config, data.tokenizer)
    if task.model.max_length is not None:
        data.refuse_longer_than(task.model.max_length)
    if config["compile"]:
        task.model.compile()
    resumed = checkpoint_to_resume(config)

    loggers = create_loggers(config["logger"])
    exit_code = 1
    try:
        metrics = fit(config, task, data, loggers, resumed, console)
        exit_code = 0
    finally:
        finish(loggers, exit_code)
    return metrics.get("val/loss")


def checkpoint_to_resume(config: dict[str, Any]) -> Path | None:
    """The checkpoint that `ckpt_path` means, once it is known to be one of ours."""
    if config["ckpt_path"] is None:
        return None
    path = Path(config["ckpt_path"])
    if config["ckpt_path"] == "last":
        path = newest_checkpoint(Path(config["paths"]["logs"]), config["task"]["name"])
    before = read_checkpoint(path)["attention_zoo"]["config"]
    for group in ("model", "attention", "position", "tokenizer"):
        if before[group] != config[group]:
            raise UserError(
                f"{path} was trained with {group}={before[group]}, which is not what is composed "
                f"now. Resume with the overrides it was started with."
            )
    return path


def fit(
    config: dict[str, Any],
    task: Task,
    data: Any,
    loggers: list[Logger],
    resumed: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Train, score, write `results.json`, and tell what came of it."""
    counts = parameter_counts(task.model)
    for logger in loggers:
        logger.log_hyperparams(flat_config(config) | counts)
    callbacks = [instantiate(node) for node in config["callbacks"].values()]
    trainer: Trainer = instantiate(
        config["trainer"],
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=config["paths"]["run"],
        enable_progress_bar=bool(callbacks),
        enable_checkpointing=bool(callbacks),
    )
    started = time.perf_counter()
    trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
    seconds = time.perf_counter() - started
    if trainer.interrupted:
        raise KeyboardInterrupt

    chosen = chosen_checkpoint(trainer, callbacks)
    metrics = score(trainer.validate, task, data, chosen, "val/")
    if config["test"]:
        metrics |= score(trainer.test, task, data, chosen, "test/")
    run = shortest(Path(config["paths"]["run"]))
    throughput = next(c for c in callbacks if isinstance(c, Throughput))
    manifest = collect_manifest(
        parameters=counts["parameters"],
        tokens_seen=throughput.tokens,
        seconds=seconds,
        seed=config["seed"],
        data_hash=data.fingerprint,
        precision=config["trainer"]["precision"],
    )
    manifest |= task.manifest()
    if trainer.is_global_zero:
        write_results(run / "results.json", metrics, manifest)
        log_summary(loggers, metrics)
        for samples in (c for c in callbacks if isinstance(c, Samples)):
            print_samples(console, samples.columns, samples.rows)
        checkpoint = run / "checkpoints" / (chosen.name if chosen else "last.ckpt")
        paths = {"run": run, "checkpoint": checkpoint, "figures": run / "figures"}
        print_results(console, metrics, manifest, paths, next_commands(config, checkpoint))
    if not math.isfinite(metrics.get("val/loss", 0.0)):
        raise UserError(
            f"training diverged: val/loss is {metrics['val/loss']}. Try a lower optimizer.lr."
        )
    return metrics


def shortest(path: Path) -> Path:
    """The path from where the program was started, if it leads there: shorter to read and copy."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def chosen_checkpoint(trainer: Trainer, callbacks: list[Callback]) -> Path | None:
    """The weights a run stands for: the averaged ones, or those of lowest validation loss."""
    for callback in callbacks:
        if isinstance(callback, CheckpointAveraging):
            return callback.path
    kept = trainer.checkpoint_callback
    best = kept.best_model_path if isinstance(kept, ModelCheckpoint) else ""
    return Path(best) if best else None


def score(
    evaluate: Callable[..., Any], task: Task, data: Any, checkpoint: Path | None, prefix: str
) -> dict[str, Any]:
    """Metrics of a split, by the Trainer's `validate` or `test`, with a checkpoint's weights."""
    evaluate(task, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    return logged(task.trainer, prefix)


def logged(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """The metrics of a split, as last logged."""
    return {
        name: value.item()
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith(prefix)
    }


def next_commands(config: dict[str, Any], checkpoint: Path) -> list[str]:
    """What one would try now."""
    use = {
        "translation": f'attention-zoo translate ckpt={checkpoint} "Wednesday, March 4, 2026"',
        "language_modeling": f'attention-zoo generate ckpt={checkpoint} "The "',
    }
    return [
        use[config["task"]["name"]],
        f"attention-zoo evaluate ckpt={checkpoint} split=valid",
        "attention-zoo train -m attention=multi_head,linear position=sinusoidal,rotary",
    ]
