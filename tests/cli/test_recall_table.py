"""The command that makes the README's table of recall."""

import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT

TINY = [
    *["data.source.size=40", "data.source.valid=8", "data.source.test=8"],
    *["data.source.vocabulary=16", "model.dim=16", "model.ffn_dim=16", "trainer.max_steps=2"],
]


@pytest.mark.slow
def test_the_table_stands_between_the_marks(program):
    readme = program.folder / "README.md"
    readme.write_text("Before\n<!-- recall: begin -->\nold\n<!-- recall: end -->\nAfter\n")
    command = [sys.executable, ROOT / "benchmarks" / "recall.py", "--output", readme]
    done = subprocess.run(
        [*command, "linear", "nothing", "multi_head", *TINY],
        cwd=program.folder,
        env=program.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2/3 nothing error: There is no attention 'nothing'" in done.stdout
    first, begin, columns, rule, *rows, empty, how, end, last = readme.read_text().splitlines()
    assert (first, begin) == ("Before", "<!-- recall: begin -->")
    assert (end, last) == ("<!-- recall: end -->", "After")
    assert columns == "| attention | accuracy | exact match | seconds | decode state in bytes |"
    assert rule == "|---|---|---|---|---|" and empty == ""
    cells = {row.split(" | ")[0]: row.removesuffix(" |").split(" | ")[-1] for row in rows}
    # Two layers, four bytes a number: 4 heads of 4 by 4 + 1, and keys and values of 64 tokens.
    assert cells == {"| `linear`": f"{2 * 4 * 4 * 4 * 5:,}", "| `multi_head`": "16,384"}
    assert how.startswith("4 pairs in 64 tokens, vocabulary 16; width 16, 2 layers; 2 steps of 128")
