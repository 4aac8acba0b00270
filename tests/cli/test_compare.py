"""A whole comparison, by the program: tiny models and few steps."""

import pytest
import yaml

from tests.cli.conftest import SMALL

TINY = [*SMALL, "data.source.size=60", "data.source.valid=8", "data.source.test=8"]
TINY += ["callbacks=minimal", "logger=none", "decoding.max_extra=2", "decoding.max_ratio=0.1"]
COMPARE = ["compare", *TINY, "attention=multi_head,cosine", "trainer.max_steps=8"]


def trained(sweep):
    stages = [path.parents[1].name for path in sweep.glob("*/*/results.json")]
    return {stage: stages.count(stage) for stage in stages}


@pytest.mark.slow
def test_a_comparison_answers_and_is_not_trained_again(program):
    sweep = program.folder / "sweep"
    # So that the best rate is not at the edge, where rates are tried in place of options.
    command = [*COMPARE, "trials=5", "option_trials=1", "optimizer.lr=0.4", "rate_factor=100"]
    command += ["jobs=2", f"hydra.sweep.dir={sweep}", f"scoreboard={program.folder / 'board'}"]
    printed = program(*command).stdout
    results = sorted(sweep.glob("*/*/results.json"))
    assert trained(sweep) == {"cost": 2, "tuning": 12, "shortlist": 4, "confirm": 6}
    assert "Comparison of 2 candidates" in (sweep / "report.html").read_text()
    assert "22 trainings" in printed
    assert "Tuned besides the learning rate: cosine: attention.temperature=0.03." in printed
    temperatures = [
        yaml.safe_load(x.read_text())["attention"].get("temperature")
        for x in sweep.glob("tuning/*/config.yaml")
    ]
    assert sorted(filter(None, temperatures)) == [0.03, *[0.1] * 5]
    assert len(list((program.folder / "board/results/phrases").glob("*/*.json"))) == 6
    times = [x.stat().st_mtime_ns for x in results]
    again = program(*command).stdout
    assert "6 of 6 jobs have their result already.\n" in again
    assert [x.stat().st_mtime_ns for x in results] == times


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_comparison_can_be_launched_by_joblib(program):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = program.folder / "sweep"
    command = [*COMPARE, "trials=5", "option_trials=0", f"hydra.sweep.dir={sweep}"]
    program(*command, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert trained(sweep) == {"cost": 2, "tuning": 10, "shortlist": 4, "confirm": 6}
    assert "Comparison of 2 candidates" in (sweep / "report.html").read_text()
