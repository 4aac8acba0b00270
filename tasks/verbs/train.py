"""`attention-zoo train`: compose, train, score, and leave a run folder behind."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from attention_zoo.tasks.base import Task
from attention_zoo.tasks.build import build_task, check, instantiate, parameter_counts
from attention_zoo.tasks.callbacks.throughput import Throughput
from attention_zoo.tasks.checkpoints import newest_checkpoint, read_checkpoint
from attention_zoo.tasks.composition import Call
from attention_zoo.tasks.loggers import create_loggers, finish, flat_config, log_summary
from attention_zoo.tasks.noise import quiet
from attention_zoo.tasks.results import (
    collect_manifest,
    print_config_tree,
    print_results,
    write_results,
)


def run(config: dict[str, Any], call: Call) -> float | None:
    """Train what the config says; return the best validation loss, for sweepers that minimise."""
    check(config)
    quiet()
    console = Console(quiet=rank_zero_only.rank != 0)
    print_config_tree(console, config)
    seed_everything(config["seed"], workers=True, verbose=False)
    data = instantiate(config["data"])
    with console.status("Preparing the data"):
        data.prepare_data()
        data.setup()
    print_report(console, data.report)
    task = build_task(config, data.tokenizer)
    if task.model.max_length is not None:
        data.refuse_longer_than(task.model.max_length)
    if config["compile"]:
        task.model.compile()
    resumed = resumed_from(config)

    loggers = create_loggers(config["logger"])
    exit_code = 1
    try:
        metrics = fit(config, task, data, loggers, resumed, console)
        exit_code = 0
    finally:
        finish(loggers, exit_code)
    return metrics.get("val/loss")
