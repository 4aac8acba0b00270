"""The sweep over encodings, and the command that puts it into the README."""

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.cli.conftest import ROOT

TINY = [
    *["model.dim=16", "model.ffn_dim=16", "model.layers=1", "data.batch_size=256"],
    *["data.source.valid_fraction=0.01", "trainer.max_steps=2"],
]


@pytest.mark.slow
def test_the_sweep_is_reported_and_stands_between_the_marks(program):
    readme = program.folder / "README.md"
    marks = "<!-- extrapolation: begin -->\nold\n<!-- extrapolation: end -->\n"
    readme.write_text(f"Before\n{marks}After\n")
    command = [sys.executable, ROOT / "benchmarks" / "extrapolation.py", "--output", readme]
    done = subprocess.run(
        [*command, "attention=linear", "position=learned,alibi,sinusoidal", *TINY],
        cwd=program.folder,
        env=program.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    (sweep,) = (program.folder / "logs" / "extrapolation").iterdir()
    assert "linear cannot take position=alibi" in done.stderr
    assert "Perplexity by length" in done.stdout and (sweep / "extrapolation.png").exists()
    results = [json.loads((sweep / job / "results.json").read_text()) for job in "02"]
    assert all(each["lengths"]["scored"] == [64, 128, 256, 512] for each in results)
    first, _, picture, _, columns, _rule, *rows, _, how, _, last = readme.read_text().splitlines()
    assert (first, last) == ("Before", "After")
    assert picture.endswith("(docs/images/extrapolation.png)")
    assert (program.folder / "docs" / "images" / "extrapolation.png").exists()
    assert columns.startswith("| position | at 64 | at 128 | at 256 | at 512 | 512 to 64 |")
    assert [row.split(" | ")[0] for row in rows] == ["| `learned`", "| `sinusoidal`"]
    assert f"{results[0]['test/perplexity@256']:,.0f}" in rows[0]
    assert "Trained at 64 tokens: width 16, 1 layers, 2 steps" in how and "by 256 tokens" in how


def test_the_experiment_sweeps_encodings_at_several_lengths():
    experiment = OmegaConf.load(ROOT / "conf" / "experiment" / "extrapolation.yaml")
    names = experiment.hydra.sweeper.params.position.split(",")
    assert {"none", "learned", "sinusoidal", "rotary", "alibi", "t5_bias"} <= {*names}
    assert list(experiment.lengths) == [
        experiment.data.context_length * 2**power for power in range(4)
    ]
