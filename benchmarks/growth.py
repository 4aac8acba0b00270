"""How the time of an attention layer grows with the length of its input.

Forward and backward of one sequence, for every entry whose card says that it costs less than t²,
and for multi_head beside them. Lengths take turns, the median of the rounds is kept, and the
exponent is the slope of log time over log length.

    python benchmarks/growth.py [--rounds 5] [--output benchmarks/growth.md] [NAME …]
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from rich.progress import Progress

from attention_zoo import ATTENTION
from attention_zoo.attention.base import Attention
from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.tables import Table, markdown_table
from attention_zoo.tasks.configuration.entry_configs import entry_options

DIM, HEADS = 64, 2
LENGTHS = (512, 1024, 2048, 4096, 8192)
LIMIT = 1.2  # of the exponent, for what is said to be linear

INTRODUCTION = f"""# Growth

Milliseconds of forward and backward through one layer of width {DIM} with {HEADS} heads, for one
sequence of so many tokens, on {{threads}} CPU threads in float32: medians of {{rounds}} rounds, in
which the lengths take turns. The exponent is the slope of log time over log length: 1 is linear,
2 quadratic. What the cards call linear must stay at or below {LIMIT}; the command fails where it
does not. `python benchmarks/growth.py --output benchmarks/growth.md` makes this page.
"""


def layer(name: str) -> Attention:
    """The entry with its config's options, but for a limit of its length."""
    options = entry_options("attention", name, heads=HEADS)
    if "max_length" in options:
        options["max_length"] = max(LENGTHS)
    roles = ATTENTION.card(name).roles
    role = "causal" if "causal" in roles else "global"
    return create_attention(name, dim=DIM, role=role, **options)


def milliseconds(attention: Attention, length: int) -> float:
    x = torch.randn(1, length, DIM, requires_grad=True)
    started = time.perf_counter()
    attention(x).sum().backward()
    return 1000 * (time.perf_counter() - started)


def exponent(medians: dict[int, float]) -> float:
    """The slope of the line of least squares through log time over log length."""
    xs, ys = [math.log(n) for n in medians], [math.log(t) for t in medians.values()]
    x, y = statistics.mean(xs), statistics.mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries; all that are not t²")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the page to this file")
    chosen = parser.parse_args()
    cheap = [name for name in ATTENTION if ATTENTION.card(name).cost != "t²"]
    rows, failed = [], []
    with Progress() as progress:
        for name in progress.track(chosen.names or ["multi_head", *cheap]):
            attention = layer(name)
            times: dict[int, list[float]] = {length: [] for length in LENGTHS}
            for turn in range(chosen.rounds + 1):
                for length in LENGTHS:
                    spent = milliseconds(attention, length)
                    if turn > 0:  # The first one warms up.
                        times[length].append(spent)
            medians = {length: statistics.median(times[length]) for length in LENGTHS}
            cost, found = ATTENTION.card(name).cost, exponent(medians)
            if cost == "t" and found > LIMIT:
                failed.append(f"{name} ({found:.2f})")
            cells = [f"{value:.1f}" for value in medians.values()]
            rows.append((name, cost, *cells, f"{found:.2f}"))
            progress.console.print(name, *cells, f"exponent {found:.2f}")
    columns = ("attention", "cost", *(f"{length:,}" for length in LENGTHS), "exponent")
    introduction = INTRODUCTION.format(threads=torch.get_num_threads(), rounds=chosen.rounds)
    table = markdown_table(Table("Growth", columns, rows), code_names=True)
    text = f"{introduction}\n{table}\n"
    if chosen.output is not None:
        chosen.output.write_text(text)
    if failed:
        raise SystemExit(f"Not linear: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
