"""Tokens per second of `attention-zoo train` compared with a bare PyTorch loop.

Both train the same model, from the same weights, on the same batches, with the same optimiser and
gradient clipping. Only the first uses the Trainer, its callbacks and a logger. They take turns in
one process. The result is the median of the ratios of all rounds.

    python -m benchmarks.training_speed [--rounds 9] [--steps 60] [overrides of train …]
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from hydra import compose, initialize_config_module
from lightning import Callback, Trainer, seed_everything
from omegaconf import OmegaConf
from rich.progress import track
from torch.nn.functional import cross_entropy

from attention_zoo.tasks.commands.warning_filters import silence_libraries
from attention_zoo.tasks.configuration.build import build_task, instantiate
from attention_zoo.tasks.configuration.composition import register_plugins
from attention_zoo.tasks.configuration.defaults import resolve_defaults
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.training.loggers.loggers import create_loggers, finish_loggers
from attention_zoo.tasks.training.task import Task
from attention_zoo.tasks.views.tables import Table, markdown_table
from benchmarks.measuring import CLOCKS, create_parser, describe_ratios, write_page

CASES = {
    "translation (default)": [],
    "language modelling": ["task=language_modeling", "tokenizer=characters", "model.layers=4"],
}
WARM_UP = 5  # steps before the clock starts
INTRODUCTION = """# Training through the Trainer

`attention-zoo train` with its callbacks and a logger, against a bare loop of the same model, data
and optimiser: forward, loss, backward, clip, step. The ratio is the time of the bare loop over
ours: at 1, all else costs nothing. Times of {steps} steps are {clock} seconds with {threads}
threads; medians of {rounds} rounds, in which both take turns, the smallest and the largest in
brackets. Attention maps and samples are drawn at validations, which are not counted. This command
makes the page:

    python -m benchmarks.training_speed --rounds {rounds} --steps {steps} --threads {threads} \\
        --clock {clock} --output PAGE

"""

Clock = Callable[[], float]


class Stopwatch(Callback):
    """Measure the seconds from the end of the warm-up to the end of the last step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.started = self.clock()
        self.stopped = self.clock()


def compose_config(overrides: list[str], run: str, steps: int) -> dict[str, Any]:
    """Return the config of a training of some steps, in plain containers."""
    fixed_options = [f"paths.run={run}", "logger=csv", "schedule=constant"]
    fixed_options += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps + 1}"]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        config = compose("train", overrides=[*overrides, *fixed_options])
    resolve_defaults(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain | {"choices": {}}


def bare_seconds(task: Task, data: Any, config: dict[str, Any], steps: int, clock: Clock) -> float:
    """Return the time of a bare loop: forward, loss, backward, clip, step."""
    model = task.model.train()
    optimizer = task.optimizer_factory(model)
    batches = chain.from_iterable(data.train_dataloader() for _ in count())
    started = 0.0
    for step, batch in enumerate(islice(batches, steps), start=1):
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
        if step == WARM_UP:
            started = clock()
    return clock() - started


def trainer_seconds(task: Task, data: Any, config: dict[str, Any], clock: Clock) -> float:
    """Return the time of the Trainer, with callbacks and logger as in `attention-zoo train`."""
    stopwatch = Stopwatch(clock)
    loggers = create_loggers(config, job_type="train")
    callbacks = [instantiate(node) for node in config["callbacks"].values()]
    trainer = instantiate(config["trainer"], logger=loggers, callbacks=[*callbacks, stopwatch])
    trainer.fit(task, datamodule=data)
    finish_loggers(loggers, 0)
    return stopwatch.stopped - stopwatch.started


def measure(overrides: list[str], rounds: int, steps: int, label: str, clock: Clock) -> list[float]:
    """Return bare seconds over the Trainer's, of each round: 1 is as fast, less is slower."""
    ratios = []
    with tempfile.TemporaryDirectory() as run:
        config = compose_config(overrides, run, steps)
        data = instantiate(config["data"])
        data.prepare_data()
        data.setup()
        seed_everything(config["seed"], verbose=False)
        start = build_task(config, data.tokenizer)
        for number in track(range(rounds), description=label):
            runs = {
                "bare": partial(bare_seconds, copy.deepcopy(start), data, config, steps, clock),
                "trainer": partial(trainer_seconds, copy.deepcopy(start), data, config, clock),
            }
            order = ("bare", "trainer") if number % 2 else ("trainer", "bare")
            seconds = {name: runs[name]() for name in order}
            ratios.append(seconds["bare"] / seconds["trainer"])
    return ratios


def main() -> None:
    """Measure all cases, and print or write the table."""
    parser = create_parser(__doc__, rounds=9)
    parser.add_argument("--steps", type=int, default=60)
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    silence_libraries()
    register_plugins("train")
    rows = []
    for label, case in CASES.items():
        options = arguments.rounds, arguments.steps, label, CLOCKS[arguments.clock]
        rows.append((label, describe_ratios(measure([*case, *overrides], *options))))
    settings = {x: getattr(arguments, x) for x in ("rounds", "steps", "threads", "clock")}
    table = markdown_table(Table("", ["case", "ratio"], rows))
    write_page(f"{INTRODUCTION.format(**settings)}{table}\n", arguments.output)


if __name__ == "__main__":
    main()
