"""Batches of similar length, up to a number of tokens, against batches of a fixed number of pairs.

Both train the same model from the same weights, with the same optimiser, and take turns in one
process. Batches of a fixed number of pairs come in random order; the number is chosen so that both
have as many tokens in a step. The validation loss is computed with the clock stopped.

    python benchmarks/translation_batches.py [--steps 300] [--output PAGE] [overrides of train …]
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import seed_everything
from rich.progress import Progress
from torch.nn.functional import cross_entropy

from attention_zoo.tasks.configuration.build import build_task, instantiate
from attention_zoo.tasks.configuration.composition import register_plugins
from attention_zoo.tasks.data.batches import IGNORE_INDEX, TranslationBatch
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import ShuffledRowSampler
from attention_zoo.tasks.training.task import Task
from attention_zoo.tasks.views.tables import Table, markdown_table
from benchmarks.training_speed import compose_config

DEFAULT = ["experiment=gettext"]
EVERY = 25  # steps between validations
SCORED = 20  # batches of a validation

INTRODUCTION = """# Batches of translations

`{overrides}` on {threads} CPU threads: {steps} steps with batches of similar length, up to
data.tokens_per_batch={tokens} tokens on each side, and with batches of {pairs} pairs in random
order, which is as many tokens in a step. Padding is its share of all places in a batch. Tokens per
second are those of targets; the ratio of both is the median over {rounds} turns of {every} steps.
The last column is the time until the validation loss is {loss:.3f} nats, which both reach. This
command makes the page:

    python -m benchmarks.translation_batches --steps {steps} --output PAGE

"""


class Training:
    """A task that trains on the batches of a loader, and its clock."""

    def __init__(self, task: Task, loader: ResumableLoader) -> None:
        self.task = task
        self.optimizer = task.optimizer_factory(task.model)
        self.batches: Iterator[TranslationBatch] = chain.from_iterable(loader for _ in count())
        self.seconds, self.tokens, self.padding, self.places = 0.0, 0, 0, 0
        self.speeds: list[float] = []
        self.losses: list[tuple[float, float]] = []  # seconds and validation loss

    def train(self, steps: int) -> None:
        """Take some steps: forward, loss, backward, clip, step."""
        seconds, tokens = 0.0, 0
        self.task.train()
        for _ in range(steps):
            batch = next(self.batches)
            for side in (batch.source, batch.target):
                self.padding += int((side == self.task.tokenizer.pad_id).sum())
                self.places += side.numel()
            started = time.perf_counter()
            logits, targets = self.task.predict_batch(batch)
            loss = cross_entropy(
                logits.flatten(0, 1),
                targets.flatten(),
                ignore_index=IGNORE_INDEX,
                label_smoothing=self.task.label_smoothing,
            )
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0)
            self.optimizer.step()
            seconds += time.perf_counter() - started
            tokens += int((targets != IGNORE_INDEX).sum())
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        self.speeds.append(tokens / seconds)

    @torch.inference_mode()
    def validate(self, batches: list[TranslationBatch]) -> None:
        """Add the loss of validation batches, in nats for a token."""
        self.task.eval()
        total, tokens = 0.0, 0
        for batch in batches:
            logits, targets = self.task.predict_batch(batch)
            flat = logits.flatten(0, 1), targets.flatten()
            total += float(cross_entropy(*flat, ignore_index=IGNORE_INDEX, reduction="sum"))
            tokens += int((targets != IGNORE_INDEX).sum())
        self.losses.append((self.seconds, total / tokens))

    def seconds_until(self, loss: float) -> float:
        """Return the time until a validation loss, between two validations by a straight line."""
        for (before, high), (after, low) in zip(self.losses, self.losses[1:], strict=False):
            if low <= loss:
                return before + (after - before) * (high - loss) / (high - low)
        return self.seconds


def main() -> None:
    """Train both ways, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path)
    arguments, overrides = parser.parse_known_args()
    overrides = overrides or DEFAULT
    register_plugins("train")
    with tempfile.TemporaryDirectory() as run:
        config: dict[str, Any] = compose_config(overrides, run, arguments.steps)
        data = instantiate(config["data"])
        data.prepare_data()
        data.setup()
        seed_everything(config["seed"], verbose=False)
        task = build_task(config, data.tokenizer)
        own = data.train_dataloader()
        pairs = round(float(np.mean(own.sampler.epoch_batches(0).sizes())))
        dataset = data.dataset("train")
        fixed = ResumableLoader(
            dataset, ShuffledRowSampler(len(dataset), batch_size=pairs, seed=config["seed"])
        )
        held_out = [batch for batch, _ in zip(data.val_dataloader(), range(SCORED), strict=False)]
        names = ["similar length", "random order"]
        trainings = [Training(copy.deepcopy(task), loader) for loader in (own, fixed)]
        with Progress() as progress:
            for _ in progress.track(range(arguments.steps // EVERY), description="Steps"):
                for training in trainings:
                    training.train(EVERY)
                    training.validate(held_out)
    loss = max(training.losses[-1][1] for training in trainings)
    ratios = [a / b for a, b in zip(*(x.speeds for x in trainings), strict=True)]
    rows = [
        [
            name,
            f"{100 * x.padding / x.places:.1f} %",
            f"{x.tokens / x.seconds:,.0f}",
            f"{x.losses[-1][1]:.3f}",
            f"{x.seconds_until(loss):.0f} s",
        ]
        for name, x in zip(names, trainings, strict=True)
    ]
    columns = ["batches", "padding", "tokens per second", "validation loss", "time to the loss"]
    page = INTRODUCTION.format(
        overrides=" ".join(overrides),
        threads=torch.get_num_threads(),
        steps=arguments.steps,
        tokens=data.tokens_per_batch,
        pairs=pairs,
        rounds=len(ratios),
        every=EVERY,
        loss=loss,
    )
    page += f"{markdown_table(Table('', columns, rows))}\n"
    page += (
        f"\nBatches of similar length train {statistics.median(ratios):.2f} times as many tokens "
    )
    page += f"in a second ({min(ratios):.2f} to {max(ratios):.2f}).\n"
    if arguments.output is None:
        print(page)
    else:
        arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
