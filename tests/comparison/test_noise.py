"""The spread over seeds, and what a comparison can show with it."""

import pytest

from attention_zoo.tasks.analysis.report.power import smallest_difference
from attention_zoo.tasks.analysis.report.runs import find_runs
from attention_zoo.tasks.comparison import noise as module
from attention_zoo.tasks.comparison.noise import (
    Noise,
    describe_power,
    measure_noise,
    nearest_noise,
    read_noise,
)
from attention_zoo.tasks.comparison.rates import TUNING_VARIANCE
from tests.report.folders import write_run

NEAR = Noise("recall", "test/accuracy", 64, 400, 8, 0.01)
FAR = Noise("recall", "test/accuracy", 512, 10_000, 8, 0.5)


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(module, "read_noise", lambda: [FAR, NEAR])


def test_the_table_can_be_read():
    for noise in read_noise():
        assert noise.spread >= 0 and noise.seeds >= 3 and noise.measure.title


def test_the_nearest_size_is_taken(table):
    assert nearest_noise("recall", dim=32, steps=800) == NEAR
    assert nearest_noise("recall", dim=256, steps=8000) == FAR
    assert nearest_noise("copy", dim=32, steps=800) is None


def test_what_can_be_shown_is_said_beforehand(table):
    expected = smallest_difference(0.01, 3, 4, tuning_variance=TUNING_VARIANCE)
    text = describe_power("recall", dim=64, steps=400, seeds=3, rows=4, named_reference=False)
    assert f"a difference from the best of {expected:.3f} in accuracy" in text
    # 0.5 of the accuracy
    text = describe_power("recall", dim=512, steps=10_000, seeds=3, rows=4, named_reference=False)
    assert text.startswith("3 seeds are too few to show any difference from the best in accuracy")
    text = describe_power("copy", dim=64, steps=400, seeds=3, rows=4, named_reference=False)
    assert text.startswith("The spread over seeds on data=copy is not known")


def test_the_spread_is_that_of_seeds_alone(tmp_path):
    for number, (attention, bleu) in enumerate([("linear", 10.0), ("gated", 30.0)]):
        for seed in (1, 2, 3):
            figures = {"test/bleu": bleu + seed, "steps": 400}
            run = tmp_path / f"{10 * number + seed}"
            write_run(run, attention=attention, seed=seed, model={"dim": 64}, figures=figures)
    assert measure_noise(find_runs([tmp_path])) == [Noise("phrases", "test/bleu", 64, 400, 6, 1.0)]
