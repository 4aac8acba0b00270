"""The parity table: each entry beside the reference that its card names.

python -m tests.parity [--output benchmarks/parity.md]
python -m tests.parity --models [--output docs/models.md]: the models of transformers beside ours
"""

import argparse
import textwrap
from importlib.metadata import version
from pathlib import Path

import torch

from tests.parity.compared import discover, errors
from tests.parity.models import NamedModel, differences, discover_models

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


MODELS_INTRODUCTION = """# Models by name

Models that others have published, composed from the options of this program. Each computes the
logits of transformers' model of that name from the same weights: the table has the largest
difference, relative to the largest logit, in float32, of one pass and of decoding one token at a
time with a cache, for small models with random weights. The last column is the same for theirs
alone: their decoding, and their one pass. Mixtures of experts are not part of this program, so
their models are compared without them.

The options below build the model; sizes (`model.dim`, `model.layers`, `model.heads`,
`model.ffn_dim`, `kv_heads`) are free. `python -m tests.parity --models --output docs/models.md`
makes this page; the same cases are tests.
"""


def models_page() -> str:
    cases = sorted(discover_models(), key=lambda case: case.name)
    rows = ["| model | one pass | decoding | theirs alone |", "|---|---|---|---|"]
    for case in cases:
        found = " | ".join(f"{x:.0e}" for x in differences(case))
        rows.append(f"| [{case.name}](#{case.name}) | {found} |")
    return "\n".join([*rows, *map(describe_model, cases)])


def describe_model(case: NamedModel) -> str:
    """The command that trains a model of this name, in lines of options."""
    command = textwrap.fill(
        " ".join(["attention-zoo train", *case.overrides]),
        width=96,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    note = f"\n{case.note[0].upper()}{case.note[1:]}.\n" if case.note else ""
    lines = command.replace("\n", " \\\n")
    return f"\n## {case.name}\n{note}\n```console\n{lines}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", action="store_true", help="the models of transformers")
    parser.add_argument("--output", type=Path, help="write the page to this file")
    chosen = parser.parse_args()
    versions = f"torch {torch.__version__}"
    if chosen.models:
        page = f"{MODELS_INTRODUCTION}\n{models_page()}"
        versions += f", transformers {version('transformers')}"
    else:
        page = f"{INTRODUCTION}\n{table()}"
    text = f"{page}\n\n{versions}\n"
    if chosen.output is None:
        print(text)
    else:
        chosen.output.write_text(text)


if __name__ == "__main__":
    main()
