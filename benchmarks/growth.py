"""Growth of an attention layer's time with the length of its input.

This times forward and backward of one sequence, for multi_head and for every entry whose card
says that it costs less than t². Each round measures all lengths once. The exponent is the slope of
log time over log length, of the medians over rounds.

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
from attention_zoo.tasks.configuration.conf_files import entry_options
from attention_zoo.tasks.views.tables import Table, markdown_table

DIM, HEADS = 64, 2
LENGTHS = (512, 1024, 2048, 4096, 8192)
LIMIT = 1.2  # the largest exponent of an entry whose card says linear

INTRODUCTION = f"""# Growth

Milliseconds of forward and backward through one layer of width {DIM} with {HEADS} heads, for one
sequence, by its number of tokens. On {{threads}} CPU threads in float32: medians of {{rounds}}
rounds, each of which measures all lengths once. The exponent is the slope of log time over log
length: 1 is linear, 2 quadratic. Entries that their cards call linear must stay at or below
{LIMIT}; otherwise the command fails. This command makes the page:
`python benchmarks/growth.py --rounds {{rounds}} --output benchmarks/growth.md`
"""


def create_layer(name: str) -> Attention:
    """Return a layer with its config's options, except a limit of its length."""
    options = entry_options("attention", name, heads=HEADS)
    if "max_length" in options:
        options["max_length"] = max(LENGTHS)
    roles = ATTENTION.card(name).roles
    role = "causal" if "causal" in roles else "global"
    return create_attention(name, dim=DIM, role=role, **options)


def measure_milliseconds(attention: Attention, length: int) -> float:
    """Return the time of forward and backward."""
    x = torch.randn(1, length, DIM, requires_grad=True)
    started = time.perf_counter()
    attention(x).sum().backward()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure the entries, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="entries; default: all that cost less than t²"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the page to this file")
    arguments = parser.parse_args()
    cheap = [name for name in ATTENTION if ATTENTION.card(name).cost != "t²"]
    rows, failed = [], []
    with Progress() as progress:
        for name in progress.track(arguments.names or ["multi_head", *cheap]):
            attention = create_layer(name)
            times: dict[int, list[float]] = {length: [] for length in LENGTHS}
            for number in range(arguments.rounds + 1):
                for length in LENGTHS:
                    elapsed = measure_milliseconds(attention, length)
                    if number > 0:  # The first round warms up.
                        times[length].append(elapsed)
            medians = [statistics.median(times[length]) for length in LENGTHS]
            logs = list(map(math.log, LENGTHS)), list(map(math.log, medians))
            cost, exponent = ATTENTION.card(name).cost, statistics.linear_regression(*logs).slope
            if cost == "t" and exponent > LIMIT:
                failed.append(f"{name} ({exponent:.2f})")
            cells = [f"{value:.1f}" for value in medians]
            rows.append((name, cost, *cells, f"{exponent:.2f}"))
            progress.console.print(name, *cells, f"exponent {exponent:.2f}")
    columns = ("attention", "cost", *(f"{length:,}" for length in LENGTHS), "exponent")
    introduction = INTRODUCTION.format(threads=torch.get_num_threads(), rounds=arguments.rounds)
    if arguments.output is not None:
        table = markdown_table(Table("Growth", columns, rows), code_names=True)
        arguments.output.write_text(f"{introduction}\n{table}\n")
    if failed:
        raise SystemExit(f"Not linear: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
