"""A whole comparison, by the program: tiny models and few steps."""

import pytest
import yaml

from tests.cli.conftest import SMALL

TINY = [*SMALL, "data.source.size=60", "data.source.valid=8", "data.source.test=8"]
TINY += ["callbacks=minimal", "logger=none", "decoding.max_extra=2", "decoding.max_ratio=0.1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["jobs=2"],
        pytest.param(
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.exhaustive
        ),
    ],
    ids=["ours", "joblib"],
)
def test_a_comparison_answers_and_is_not_trained_again(program, launcher):
    if "joblib" in launcher[0]:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = program.folder / "sweep"
    command = ["compare", *TINY, "attention=multi_head,cosine", "trainer.max_steps=8"]
    # So that the best rate is not at the edge, where rates are tried in place of options.
    command += ["trials=5", "option_trials=1", "optimizer.lr=0.4", "rate_factor=100"]
    command += [*launcher, f"hydra.sweep.dir={sweep}", f"scoreboard={program.folder / 'board'}"]
    printed = program(*command).stdout
    counts = {"cost": 2, "tuning": 12, "halving": 6, "confirm": 6}
    results = sorted(sweep.glob("*/*/results.json"))
    assert {x: len(list(sweep.glob(f"{x}/*/results.json"))) for x in counts} == counts
    assert "Comparison of 2 candidates" in (sweep / "report.html").read_text()
    assert "24 trainings" in printed
    assert "Tuned besides the learning rate: cosine: attention.temperature=0.03." in printed
    temperatures = [
        yaml.safe_load(x.read_text())["attention"].get("temperature")
        for x in sweep.glob("tuning/*/config.yaml")
    ]
    assert sorted(filter(None, temperatures)) == [0.03, *[0.1] * 5]
    assert len(list((program.folder / "board/results/phrases").glob("*/*.json"))) == 6
    times = [x.stat().st_mtime_ns for x in results]
    program(*command)
    assert [x.stat().st_mtime_ns for x in results] == times
