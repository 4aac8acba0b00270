"""What scripts that measure ratios share: arguments, clocks, and pages."""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def create_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the arguments of all scripts; `rounds` is the default of that argument."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="in which all take turns")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of all threads together"
    )
    parser.add_argument("--output", type=Path, help="write the page to this file")
    return parser


def describe_ratios(ratios: Sequence[float]) -> str:
    """Return the median of ratios, with the smallest and the largest in brackets."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def write_page(page: str, output: Path | None) -> None:
    """Write a page to a file, or print it."""
    if output is None:
        print(page)
    else:
        output.write_text(page, encoding="utf-8")
