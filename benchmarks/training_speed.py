"""Tokens per second of `attention-zoo train` beside a bare PyTorch loop.

Both train the same model, from the same weights, on the same batches, with the same optimiser and
gradient clipping; the one with the Trainer, its callbacks and a logger, the other with none of
them. They take turns in one process, and the median of the rounds' ratios is reported.

    python benchmarks/training_speed.py [--rounds 9] [--steps 60] [overrides of train …]
"""

import argparse
import copy
import statistics
import tempfile
import time
from typing import Any

import torch
from hydra import compose, initialize_config_module
from lightning import Callback, Trainer, seed_everything
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import cross_entropy

from attention_zoo.tasks.commands.warning_filters import quiet
from attention_zoo.tasks.configuration.build import build_task, instantiate, resolve_defaults
from attention_zoo.tasks.configuration.composition import register_plugins
from attention_zoo.tasks.training.loggers.loggers import create_loggers, finish
from attention_zoo.tasks.training.task import IGNORE_INDEX, Task

CASES = {
    "translation (default)": [],
    "language modelling": ["task=language_modeling", "tokenizer=characters", "model.layers=4"],
}
WARM_UP = 5  # steps before the clock starts


class Stopwatch(Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.started = time.perf_counter()
        self.stopped = time.perf_counter()


def composed(overrides: list[str], run: str, steps: int) -> dict[str, Any]:
    decided_options = [
        f"paths.run={run}",
        "logger=csv",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps + 1}",
        "schedule=constant",
    ]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        config = compose("train", overrides=[*overrides, *decided_options])
    resolve_defaults(config)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain | {"choices": {}}


def bare_seconds(task: Task, data: Any, config: dict[str, Any], steps: int) -> float:
    """The loop that one would write: forward, loss, backward, clip, step."""
    model = task.model.train()
    optimizer = task.new_optimizer(model)
    batches = iter(data.train_dataloader())
    started = 0.0
    for step in range(steps):
        if step == WARM_UP:
            started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches = iter(data.train_dataloader())
            batch = next(batches)
        logits, targets = task.predict_batch(batch)
        loss = cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            label_smoothing=task.label_smoothing,
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()
    return time.perf_counter() - started


def trained_seconds(task: Task, data: Any, config: dict[str, Any]) -> float:
    """What `attention-zoo train` does after building: the Trainer with its callbacks and logger."""
    stopwatch = Stopwatch()
    loggers = create_loggers(config, job_type="train")
    callbacks = [instantiate(node) for node in config["callbacks"].values()]
    trainer = instantiate(config["trainer"], logger=loggers, callbacks=[*callbacks, stopwatch])
    trainer.fit(task, datamodule=data)
    finish(loggers, 0)
    return stopwatch.stopped - stopwatch.started


def measure(overrides: list[str], rounds: int, steps: int, label: str) -> list[float]:
    """Bare seconds over ours, of each round: 1 is as fast, less is slower."""
    ratios = []
    with tempfile.TemporaryDirectory() as run:
        config = composed(overrides, run, steps)
        data = instantiate(config["data"])
        data.prepare_data()
        data.setup()
        seed_everything(config["seed"], verbose=False)
        start = build_task(config, data.tokenizer)
        for turn in track(range(rounds), description=label):
            bare, ours = copy.deepcopy(start), copy.deepcopy(start)
            runs = {
                "bare": lambda task=bare: bare_seconds(task, data, config, steps),
                "ours": lambda task=ours: trained_seconds(task, data, config),
            }
            order = ("bare", "ours") if turn % 2 else ("ours", "bare")
            seconds = {name: runs[name]() for name in order}
            ratios.append(seconds["bare"] / seconds["ours"])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    arguments, overrides = parser.parse_known_args()
    quiet()
    register_plugins("train")
    table = Table("case", "tokens/s, ours over bare", "rounds from … to")
    for label, case in CASES.items():
        ratios = measure([*case, *overrides], arguments.rounds, arguments.steps, label)
        median = statistics.median(ratios)
        table.add_row(label, f"{median:.3f}", f"{min(ratios):.3f} … {max(ratios):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
