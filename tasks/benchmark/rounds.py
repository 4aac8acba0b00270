"""Build models, and measure them in rounds: each entry at each length in turn."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, product
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.benchmark.measuring import MeasuredModel, tokenizer_of_size
from attention_zoo.tasks.benchmark.results import (
    FLOPS,
    FORWARD,
    MEMORY,
    STATE,
    STEP,
    Benchmark,
    Entry,
    decoding_measure,
    ratio_measure,
)
from attention_zoo.tasks.configuration.build import parameter_counts
from attention_zoo.tasks.configuration.stacks import branches_by_role
from attention_zoo.tasks.configuration.validation import validate_model
from attention_zoo.tasks.training.manifest import describe_hardware
from attention_zoo.tasks.training.trainer_options import check_compile, check_trainer
from attention_zoo.tasks.wording import pluralize
from attention_zoo.zoo import ATTENTION

TOO_LARGE = "it does not fit into the memory of the device."


def check_model(config: Mapping[str, Any], longest: int) -> None:
    """Refuse a model that cannot be built, several devices, and a length that it cannot take."""
    options = config["trainer"]
    if options["devices"] != 1 or options.get("strategy", "auto") != "auto":
        raise Unsupported(
            "benchmark measures one device in one process, got "
            f"trainer.devices={options['devices']} trainer.strategy={options.get('strategy')}; "
            "leave trainer out, or give trainer=gpu."
        )
    check_compile(config)
    tokenizer_of_size(config["tokenizer"])
    limit = validate_model(config).model.max_length
    if limit is not None and longest > limit:
        raise Unsupported(
            f"the model takes at most {limit:,} tokens, got a length of {longest:,}; give shorter "
            f"lengths, or the option that limits it, such as position.max_length={longest}."
        )


class MeasuredEntry:
    """A model, and the values of its measures in every round, by measure and length."""

    def __init__(self, label: str, overrides: Sequence[str], config: Mapping[str, Any]) -> None:
        trainer = check_trainer(config)
        self.model = MeasuredModel(config, trainer)
        self.precision = str(trainer.precision)
        branches = chain(*branches_by_role(config).values())
        costs = dict.fromkeys(ATTENTION.card(x.attention["name"]).cost for x in branches)
        parameters = parameter_counts(self.model.task.model)["parameters"]
        self.entry = Entry(label, [*overrides], ", ".join(costs), parameters)
        self.values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))

    def measure(self, length: int, options: DictConfig, *, is_first: bool) -> None:
        """Measure the model at a length once.

        What does not fit into the memory of a GPU is left out from then on, with the reason.
        """
        at_length = f"{length:,} tokens"
        if at_length in self.entry.reasons:
            return
        try:
            forward, step = self.model.time_step(options.batch_size, length)
            self.values[FORWARD.key][length].append(1000 * forward)
            self.values[STEP.key][length].append(1000 * step)
            if is_first:
                self.count_flops(length, options.batch_size)
                self.count_memory(length, options.batch_size)
            for batch_size in options.decode_batch_sizes:
                self.measure_decoding(length, batch_size, options.decode_tokens)
        except torch.OutOfMemoryError:
            self.entry.reasons[at_length] = TOO_LARGE
            for values in self.values.values():
                values.pop(length, None)

    def count_flops(self, length: int, batch_size: int) -> None:
        """Count the FLOPs of a step, which do not vary."""
        if self.model.is_compiled:
            self.entry.reasons["FLOPs"] = "compiled code does not show its operations."
        else:
            self.values[FLOPS.key][length] = [self.model.step_flops(batch_size, length)]

    def count_memory(self, length: int, batch_size: int) -> None:
        """Count the peak memory of a step, which does not vary."""
        if self.model.is_compiled and self.model.device.type == "cpu":
            self.entry.reasons["memory"] = "compiled code does not show its tensors on the CPU."
        else:
            self.values[MEMORY.key][length] = [self.model.step_bytes(batch_size, length)]

    def measure_decoding(self, length: int, batch_size: int, tokens: int) -> None:
        """Measure decoding at a batch size, if the model has a cache and that fits."""
        name = f"decoding at batch {batch_size:,} and {length:,} tokens"
        if name in self.entry.reasons or "decoding" in self.entry.reasons:
            return
        try:
            seconds, state = self.model.decode(batch_size, length, tokens)
        except Unsupported as error:
            self.entry.reasons["decoding"] = str(error)
        except UserError as error:
            self.entry.reasons[name] = str(error)
        except torch.OutOfMemoryError:
            self.entry.reasons[name] = TOO_LARGE
        else:
            key = decoding_measure(batch_size).key
            self.values[key][length].append(batch_size * tokens / seconds)
            self.values[STATE.key][length] = [state]

    def divide_by(self, reference: "MeasuredEntry") -> None:
        """Divide the time of each step by that of the reference in the same round."""
        ratios, of_reference = ratio_measure(reference.entry.label), reference.values[STEP.key]
        for length, times in self.values[STEP.key].items():
            pairs = zip(times, of_reference.get(length, ()), strict=False)
            if quotients := [x / y for x, y in pairs]:
                self.values[ratios.key][length] = quotients

    def result(self) -> Entry:
        """Return the entry with the medians over rounds, without the first, which warms up."""
        self.entry.values = {
            key: {length: round(statistics.median(x[1:] or x), 3) for length, x in values.items()}
            for key, values in self.values.items()
        }
        return self.entry


def measure_models(
    configs: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]],
    options: DictConfig,
    console: Console,
) -> Benchmark:
    """Measure models at all lengths, `options.rounds` times and once before to warm up.

    `configs` are the overrides and the config of each model, by its label.
    """
    entries = [MeasuredEntry(label, *config) for label, config in configs.items()]
    lengths = sorted(options.lengths)
    rounds = range(options.rounds + 1)
    with Progress(console=console, transient=True) as progress:
        total = len(rounds) * len(lengths) * len(entries)
        bar = progress.add_task("measuring", total=total)
        for number, length, entry in product(rounds, lengths, entries):
            where = "warm-up" if number == 0 else f"round {number}"
            progress.update(bar, description=f"{where}, {length:,} tokens, {entry.entry.label}")
            entry.measure(length, options, is_first=number == 0)
            progress.advance(bar)
    for entry in entries if len(entries) > 1 else ():
        entry.divide_by(entries[0])
    device, hardware = entries[0].model.device, describe_hardware()
    return Benchmark(
        lengths=lengths,
        rounds=options.rounds,
        batch_size=options.batch_size,
        decode_tokens=options.decode_tokens,
        decode_batch_sizes=list(options.decode_batch_sizes),
        device=(
            f"{pluralize(hardware['threads'], 'thread')} of {hardware['cpu']}"
            if device.type == "cpu"
            else f"{device} ({torch.cuda.get_device_name(device)})"
            if device.type == "cuda"
            else str(device)
        ),
        precision=", ".join(dict.fromkeys(x.precision for x in entries)),
        entries=[x.result() for x in entries],
    )
