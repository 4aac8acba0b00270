"""The results of a benchmark, as `results.json` has them; without torch."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.run_folder import CONFIG, RESULTS, read_json, unreadable
from attention_zoo.tasks.wording import pluralize

KEY = "benchmark"  # of `results.json`
FORWARD = Measure("forward_milliseconds", "Forward, ms", "lower", 1)
STEP = Measure("step_milliseconds", "Forward and backward, ms", "lower", 1)
FLOPS = Measure("step_flops", "FLOPs of forward and backward", "lower", "count")
MEMORY = Measure("peak_memory_bytes", "Peak memory of forward and backward", "lower", "bytes")
STATE = Measure("decode_state_bytes", "State of decoding, of a sequence", "lower", "bytes")


def ratio_measure(reference: str) -> Measure:
    """Return the measure of the time of a step, over that of the entry of this label."""
    return Measure("step_ratio", f"Forward and backward, over those of {reference}", "lower", 2)


def decoding_measure(batch_size: int) -> Measure:
    """Return the measure of decoding at a batch size."""
    title = f"Decoding, tokens/s at batch {batch_size:,}"
    return Measure(f"decode_tokens_per_second/{batch_size}", title, "higher", 0)


@dataclass
class Entry:
    """What was measured of a model; what could not be is missing."""

    label: str
    overrides: list[str]
    cost: str  # how the cards of its attention say that time grows, such as "t" or "t, t²"
    parameters: int
    # By the key of the measure and the length: values of the rounds while it is measured, and
    # their medians in `results.json`.
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why something is missing, by what

    def exponent(self, measure: Measure) -> float | None:
        """Return the exponent of the length that a measure grows with."""
        return fit_exponent(self.values.get(measure.key, {}))


@dataclass
class Benchmark:
    """The models that were measured together, and how."""

    lengths: list[int]
    rounds: int
    batch_size: int
    decode_tokens: int
    decode_batch_sizes: list[int]
    device: str
    precision: str
    entries: list[Entry]
    refused: dict[str, str] = field(default_factory=dict)  # the reason, by label
    command: str = ""

    @property
    def measures(self) -> list[Measure]:
        """Return the measures that any entry has a value of."""
        decoding = map(decoding_measure, self.decode_batch_sizes)
        ratio = ratio_measure(self.entries[0].label)
        measures = (FORWARD, STEP, ratio, FLOPS, MEMORY, *decoding, STATE)
        return [x for x in measures if any(x.key in entry.values for entry in self.entries)]

    def describe(self) -> str:
        """Return how it was measured, in a sentence."""
        sequences = pluralize(self.batch_size, "sequence")
        return (
            f"On {self.device} in {self.precision}, with {sequences} of random tokens: medians of "
            f"{pluralize(self.rounds, 'round')}, each of which measures all entries at all lengths "
            "in turn."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain containers, with exponents."""
        contents = asdict(self)
        for entry, plain in zip(self.entries, contents["entries"], strict=True):
            grown = {x.key: entry.exponent(x) for x in (FORWARD, STEP, MEMORY)}
            plain["exponents"] = {k: round(x, 3) for k, x in grown.items() if x is not None}
        return contents


def fit_exponent(values: Mapping[int, float]) -> float | None:
    """Return the slope of log value over log length; None for fewer than two lengths."""
    if len(values) < 2:
        return None
    lengths, heights = zip(*values.items(), strict=True)
    return statistics.linear_regression([*map(math.log, lengths)], [*map(math.log, heights)]).slope


def read_benchmark(path: Path) -> Benchmark | None:
    """Return the benchmark in a `results.json`; None if it holds none.

    Raises:
        BadInput: a benchmark of another form.
    """
    contents = read_json(path).get(KEY)
    if contents is None:
        return None
    try:
        entries = []
        for plain in contents["entries"]:
            plain.pop("exponents", None)
            by_length = {
                key: {int(length): float(x) for length, x in values.items()}
                for key, values in plain.pop("values").items()
            }
            entries.append(Entry(**plain, values=by_length))
        return Benchmark(**{**contents, "entries": entries})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, "the results of a benchmark", error) from None


def find_benchmarks(folder: Path) -> dict[Path, Benchmark]:
    """Return the benchmarks in a folder, however deep, by their own folders."""
    benchmarks = {}
    for file in sorted(folder.rglob(RESULTS)):
        # A run has a config.
        if not file.with_name(CONFIG).exists() and (benchmark := read_benchmark(file)) is not None:
            benchmarks[file.parent.resolve()] = benchmark
    return benchmarks
