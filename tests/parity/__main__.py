"""The parity table: each entry beside the reference that its card names.

python -m tests.parity [--output benchmarks/parity.md]
"""

import argparse
from pathlib import Path

import torch

from tests.parity.compared import discover, errors

INTRODUCTION = """# Parity

Each entry computes what an independent implementation does, from copied weights: the largest
difference of outputs and of gradients, relative to the largest number of theirs. In float32, or in
float64 where theirs loses digits in float32, of which the case says why.
`python -m tests.parity --output benchmarks/parity.md` makes this table; the same cases are tests.
"""


def table() -> str:
    rows = ["| entry | reference | type | forward | gradient |", "|---|---|---|---|---|"]
    for case in sorted(discover(), key=lambda case: (case.entry, case.reference)):
        found = errors(case)
        cells = (case.reference, found.dtype, f"{found.forward:.0e}", f"{found.gradient:.0e}")
        rows.append(f"| `{case.entry}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the page to this file")
    chosen = parser.parse_args()
    text = f"{INTRODUCTION}\n{table()}\n\ntorch {torch.__version__}\n"
    if chosen.output is None:
        print(text)
    else:
        chosen.output.write_text(text)


if __name__ == "__main__":
    main()
