"""The measures that runs are compared by, and how their values are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

# The base of a kind of number, and the names of its powers.
UNITS = {
    "bytes": (1024, ("B", "KiB", "MiB", "GiB", "TiB")),
    "count": (1000, ("", "k", "M", "G", "T", "P")),
}


@dataclass(frozen=True)
class Measure:
    """A number of a run's results."""

    key: str  # in `results.json`
    title: str
    better: Literal["higher", "lower"]
    number_format: int | Literal["bytes", "count"]  # an integer is a number of decimals
    # The bootstrap adds the variance of test sentences to that of seeds. None: another measure is
    # equivalent, or seeds do not change this one.
    test: Literal["bootstrap", "welch"] | None = None
    highest: float = math.inf  # value that it can have

    def format(self, value: float | None) -> str:
        """Return a value as text."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return str(value)
        if isinstance(self.number_format, int):
            return f"{value:,.{self.number_format if abs(value) < 1000 else 0}f}".replace("-", "−")
        return format_with_unit(value, self.number_format).replace("-", "−")

    def describe(self, value: float | None) -> str:
        """Return a value with its title: "12 seconds", but "1 second"."""
        text = self.format(value)
        return f"{text} {self.title.removesuffix('s') if text == '1' else self.title}"

    def format_mean(self, values: Sequence[float]) -> str:
        """Return mean ± standard deviation; of one value, the value."""
        text = self.format(fmean(values) if values else None)
        if len(values) < 2 or isinstance(self.number_format, str):
            return text
        return f"{text} ± {self.format(standard_deviation(values))}"

    def improves(self, difference: float) -> bool:
        """Return whether a difference that is not zero is one for the better."""
        return (difference > 0) == (self.better == "higher")


# The primary metric of a comparison is the first that its rows have. Exact match and accuracy come
# before the loss for diagnostics, which have no BLEU.
QUALITY = (
    Measure("test/bleu", "BLEU", "higher", 2, "bootstrap", highest=100),
    Measure("test/chrf", "chrF", "higher", 2, "bootstrap", highest=100),
    Measure("test/exact_match", "exact match", "higher", 3, "welch", highest=1),
    Measure("test/accuracy", "accuracy", "higher", 3, "welch", highest=1),
    Measure("test/loss", "test loss", "lower", 4, "welch"),
    Measure("test/bits_per_byte", "bits per byte", "lower", 4, "welch"),
    Measure("test/perplexity", "perplexity", "lower", 2),
    Measure("val/loss", "validation loss", "lower", 4, "welch"),
)
# Values per token cannot be compared between tokenizers, which differ in what a token is.
PER_TOKEN = ("test/loss", "test/perplexity", "val/loss")
COST = (
    Measure("tokens_per_second", "tokens/s", "higher", 0, "welch"),
    Measure("peak_memory_bytes", "peak memory", "lower", "bytes", "welch"),
    Measure("parameters", "parameters", "lower", "count"),
    Measure("parameters/attention", "in attention", "lower", "count"),
    Measure("parameters/position", "in position", "lower", "count"),
    Measure("training_flops_per_token", "FLOPs/token", "lower", "count"),
    Measure("decode_state_bytes", "decode state", "lower", "bytes"),
    Measure("seconds", "seconds", "lower", 0),
)


def standard_deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation, √(Σ (x − mean)² / (n − 1)); 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    # Less the first: equal values have no spread, not one of rounding errors. `stdev` of the
    # standard library gives the same by fractions, in ten times the time.
    shifted = [x - values[0] for x in values]
    mean = fmean(shifted)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in shifted) / (len(values) - 1))


def split_unit(value: float, kind: Literal["bytes", "count"]) -> tuple[float, str]:
    """Return the value in the largest unit that it has one of, and the unit: 269.5, "KiB"."""
    base, (unit, *larger_units) = UNITS[kind]
    while abs(value) >= base and larger_units:
        value, unit = value / base, larger_units.pop(0)
    return value, unit


def format_with_unit(value: float, kind: Literal["bytes", "count"]) -> str:
    """Return "269.5 KiB", or "1.05 M"."""
    value, unit = split_unit(value, kind)
    digits = 0 if value == int(value) else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}".rstrip()
