"""What is compared, and how its figures are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Of a binary or decimal number, what a thousand times more is called.
BINARY, DECIMAL = ("B", "KiB", "MiB", "GiB", "TiB"), ("", "k", "M", "G", "T", "P")
SCALES = {"bytes": (1024, BINARY), "count": (1000, DECIMAL)}


@dataclass(frozen=True)
class Measure:
    """A figure of a run.

    Args:
        key: its name in `results.json`.
        title: its name in the report.
        better: which end of it is the good one.
        style: how it is written: a number of decimals, "bytes", or "count".
        test: what tells whether two rows differ in it; None, where another measure says the same.
    """

    key: str
    title: str
    better: Literal["higher", "lower"]
    style: int | Literal["bytes", "count"]
    test: Literal["bootstrap", "welch"] | None = None

    def text(self, value: float | None) -> str:
        """A value as it is shown."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return str(value)
        if isinstance(self.style, int):
            decimals = self.style if abs(value) < 1000 else 0
            return f"{value:,.{decimals}f}".replace("-", "−")
        return scaled(value, self.style)

    def spread(self, values: Sequence[float]) -> str:
        """Mean ± standard deviation; of one value, the value."""
        if len(values) < 2 or isinstance(self.style, str):
            return self.text(mean(values))
        return f"{self.text(mean(values))} ± {self.text(deviation(values))}"


# The task's, the one that decides first. Exact match and accuracy come before BLEU in diagnostics,
# which have none.
QUALITY = (
    Measure("test/bleu", "BLEU", "higher", 2, "bootstrap"),
    Measure("test/chrf", "chrF", "higher", 2, "bootstrap"),
    Measure("test/exact_match", "exact match", "higher", 3, "welch"),
    Measure("test/accuracy", "accuracy", "higher", 3, "welch"),
    Measure("test/loss", "test loss", "lower", 4, "welch"),
    Measure("test/bits_per_byte", "bits per byte", "lower", 4, "welch"),
    Measure("test/perplexity", "perplexity", "lower", 2),
    Measure("val/loss", "validation loss", "lower", 4, "welch"),
)
# Per token: what a token is, the tokenizer says, so that they compare under one tokenizer only.
PER_TOKEN = ("test/loss", "test/perplexity", "val/loss")
COST = (
    Measure("tokens_per_second", "tokens/s", "higher", 0),
    Measure("peak_memory_bytes", "peak memory", "lower", "bytes"),
    Measure("parameters", "parameters", "lower", "count"),
    Measure("parameters/attention", "in attention", "lower", "count"),
    Measure("parameters/position", "in position", "lower", "count"),
    Measure("training_flops_per_token", "FLOPs/token", "lower", "count"),
    Measure("decode_state_bytes", "decode state", "lower", "bytes"),
    Measure("seconds", "seconds", "lower", 0),
)


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation, √(Σ (x − mean)² / (n − 1))."""
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((x - middle) ** 2 for x in values) / (len(values) - 1))


def scaled(value: float, style: Literal["bytes", "count"]) -> str:
    """269.5 KiB, or 1.05 M."""
    base, units = SCALES[style]
    power = 0
    while abs(value) >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = 0 if value == int(value) else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {units[power]}".rstrip()
