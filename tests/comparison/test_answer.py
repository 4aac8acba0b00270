"""The answer of a comparison, from runs with figures made up."""

import io
import json
import math
import shutil
from statistics import fmean, stdev

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from attention_zoo.tasks.comparison.answer import answer, describe_tuning
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.plan import Cost
from attention_zoo.tasks.comparison.rates import TUNING_VARIANCE
from attention_zoo.tasks.comparison.scoreboard import (
    Entry,
    benchmark_table,
    compare_entries,
    read_scores,
    read_trials,
    score_table,
    write_page,
)
from attention_zoo.tasks.comparison.settings import Setting
from tests.report.folders import write_job, write_run

LOSSES = {0.001: 2.0, 0.003: 1.5, 0.01: 1.0, 0.03: 1.05, 0.1: 3.0}

SCHEDULE = {"steps": 400, "trials": 7, "option_trials": 2, "seeds": 3, "rate_factor": 3}


def by_setting(losses):
    return {x if isinstance(x, Setting) else Setting(x): loss for x, loss in losses.items()}


def candidate(name, width=64, losses=LOSSES, later=None, label=None):
    cost = Cost(seconds=0.1, overhead=1.0, tokens=100.0, flops=1e6)
    found = Candidate([f"attention={name}"], name, width, label or name, 0.01, cost)
    if label is not None:
        found.overrides.append(f"model.dim={width}")
    found.losses = by_setting(losses)
    found.full_losses = by_setting(later or {0.01: 0.9, 0.03: 0.95})
    return found


def attention_options(option):
    key, _, value = option.removeprefix("attention.").partition("=")
    return {key: float(value)} if option else {}


def write_runs(folder, candidates, skills, width=None, **changes):
    for number, (each, skill) in enumerate(zip(candidates, skills, strict=True)):
        for seed in (2, 3, 4):
            run = folder / "confirm" / f"{10 * number + seed}"
            lr, option = each.best_setting
            write_job(run, *each.overrides, *each.best_setting.overrides, f"seed={seed}")
            model = {"dim": width or each.width}
            figures = {"training_flops_per_token": 1000.0 * each.width**2}
            write_run(
                run,
                attention=each.name,
                seed=seed,
                skill=skill,
                lr=lr,
                model=model,
                attention_options=attention_options(option),
                figures=figures,
                **changes,
            )


@pytest.fixture
def answered(tmp_path):
    """What is printed, and what the folder has then."""

    def run(candidates, skills, logger=None, width=None, more=(), **options):
        changes = {} if logger is None else {"logger": logger}
        write_runs(tmp_path, candidates, skills, width, **changes)
        console = Console(file=io.StringIO(), width=120)
        config = {"reference": None, "scoreboard": None, "benchmark": None} | options
        config["hydra"] = {"runtime": {"choices": {"data": "phrases"}}}
        answer(tmp_path, [*candidates, *more], SCHEDULE, OmegaConf.create(config), console)
        return console.file.getvalue(), tmp_path

    return run


def test_it_names_the_best_with_its_rate_and_its_uncertainty(answered):
    later = {0.01: 0.9, 0.03: 0.8}
    text, folder = answered([candidate("linear"), candidate("gated", later=later)], [0.5, 0.7])
    assert "gated lr=0.03 has the highest BLEU" in text and "(3 seeds)" in text
    page = (folder / "report.html").read_text()
    assert "Validation loss by learning rate" in page and "Comparison of 2 candidates" in page
    text = (folder / "report.md").read_text()
    assert "## Learning rates" in text and "add 0.5 of the variance over seeds" in text
    assert len((folder / "results.csv").read_text().splitlines()) == 7


def test_a_chosen_option_is_in_the_answer(answered, tmp_path):
    option = "attention.temperature=64.0"
    losses = LOSSES | {Setting(0.01, "attention.temperature=4.0"): 1.2, Setting(0.01, option): 0.8}
    tuned = candidate("gated_linear", losses=losses, later={Setting(0.01, option): 0.7, 0.03: 0.9})
    board = tmp_path / "board"
    text, folder = answered([candidate("linear"), tuned], [0.5, 0.7], scoreboard=str(board))
    assert "gated_linear temperature=64.0 has the highest BLEU" in text
    report = (folder / "report.md").read_text()
    assert "temperature=null" not in report, "linear has no such option"
    assert f"| gated_linear | 0.01 | {option} | tuned |" in report
    assert "| linear | 0.01 | defaults | tuned |" in report
    tried = f"Tuned besides the learning rate: `gated_linear`: attention.temperature=4.0, {option}."
    assert tried in report
    assert "Further rates in place of options: `linear` (2)." in report
    assert "(×: option, ring: chosen)" in (folder / "report.html").read_text()
    (score,) = (board / "results" / "phrases" / "gated_linear").glob("2.json")
    schedule = json.loads(score.read_text())["schedule"]
    assert (schedule["rate"], schedule["option"], schedule["is_tuned"]) == (0.01, option, True)
    scores = read_scores(board)
    compared = {name: compare_entries(name, x) for name, x in scores.items()}
    (row,) = benchmark_table(scores, compared).rows
    assert row[3] == "9", "trials of rates and of options"


def test_the_edge_is_that_of_rates_whatever_the_option():
    losses = LOSSES | {Setting(0.01, "a=1"): 0.8, Setting(0.1, "a=1"): 0.7}
    assert not candidate("x", losses=losses, later={Setting(0.01, "a=1"): 0.5}).is_at_edge
    assert candidate("x", losses=losses, later={Setting(0.1, "a=1"): 0.5}).is_at_edge


def test_the_page_names_its_command_and_one_candidate_is_no_plural(answered):
    _, folder = answered([candidate("linear")], [0.5])
    page = (folder / "report.html").read_text()
    assert "by attention-zoo compare." in page and "Comparison of 1 candidate<" in page


def test_a_reference_is_compared_with_the_others_whatever_its_rate(answered):
    text, _ = answered([candidate("linear"), candidate("gated")], [0.5, 0.7], reference="linear")
    assert "The reference, linear" in text and "Significantly better than linear" in text


@pytest.mark.slow
def test_each_width_has_a_comparison_of_its_own(answered):
    candidates = [
        candidate(name, width, label=f"{name} dim={width}")
        for name in ("linear", "gated")
        for width in (32, 64)
    ]
    text, folder = answered(candidates, [0.3, 0.5, 0.4, 0.7])
    assert "translation on phrases, width 32" in text and "translation on phrases, width 64" in text
    assert "No change of order is shown between the widths." in text
    assert "Loss by training FLOPs" in (folder / "report.html").read_text()


def test_who_was_left_out_stands_on_the_page(answered):
    candidates = [candidate("linear"), candidate("gated")]
    refused = Candidate(["attention=x"], "x", 64, "x", 0.01, reason="refused: no such role")
    text, folder = answered(candidates, [0.5, 0.7], more=[refused])
    assert "Left out: x (refused: no such role)." in text
    assert "refused: no such role" in (folder / "report.html").read_text()


def test_widths_are_told_by_the_candidates_whatever_the_configs_say(answered):
    """A fine-tuned model has the width of its checkpoint, not that of the composed config."""
    text, _ = answered([candidate("linear", 32), candidate("gated", 32)], [0.5, 0.7], width=48)
    assert "gated has the highest BLEU" in text


def test_what_is_not_tuned_is_said():
    edge = candidate("edge", later={0.1: 0.5})
    sentences = list(describe_tuning([edge, candidate("good")]))
    assert sentences[0].startswith(
        "Best at the edge of the rates that were tried, so not tuned: `edge`."
    )
    untrained = candidate("none", losses={1.0: float("inf")}, later={1.0: float("inf")})
    assert "No rate trains: `none`." in list(describe_tuning([untrained, candidate("good")]))


def test_the_width_of_the_range_of_good_rates_is_a_result():
    narrow = candidate("narrow", losses=LOSSES | {0.03: 1.5})
    (sentence,) = describe_tuning([narrow, candidate("wide")])
    assert "`narrow` (0.01 only) has the narrowest range and `wide` (0.01 to 0.03) the" in sentence
    assert list(describe_tuning([candidate("one"), candidate("as wide")])) == []


def table_of(board):
    scores = read_scores(board)
    return score_table(scores, {name: compare_entries(name, x) for name, x in scores.items()})


def test_a_scoreboard_keeps_the_results_of_several_comparisons(answered, tmp_path):
    board = tmp_path / "board"
    later = {0.1: 0.5}
    text, _ = answered([candidate("linear"), candidate("gated")], [0.5, 0.7], scoreboard=str(board))
    assert str(board / "index.html") in text
    shutil.rmtree(tmp_path / "confirm")
    answered([candidate("edge", later=later)], [0.69], scoreboard=str(board), benchmark="phrases")
    assert sorted(x.name for x in (board / "results" / "phrases").iterdir()) == [
        *("edge", "gated", "linear")
    ]
    table = table_of(board)
    cells = {row[0]: row[1] for row in table.rows}
    assert table.columns == ["candidate", "phrases"]
    assert cells["edge"].endswith("(not tuned)") and " to " in cells["linear"]
    assert cells["gated"].style == "good" and cells["linear"].style == ""
    page = (board / "index.html").read_text()
    assert "400" in page and "BLEU, higher is better" in page


def test_a_scoreboard_shows_the_rates_of_the_trials_that_it_keeps(answered, tmp_path):
    board = tmp_path / "board"
    option = Setting(0.01, "attention.temperature=4.0")
    tuned = candidate("gated_linear", losses=LOSSES | {0.1: math.inf, option: 0.8})
    answered([candidate("linear"), tuned], [0.5, 0.7], scoreboard=str(board))
    results = board / "results" / "phrases"
    kept = json.loads((results / "gated_linear" / "2.json").read_text())["trials"]
    assert kept[-2:] == [
        {"rate": 0.1, "option": "", "loss": None},
        {"rate": 0.01, "option": "attention.temperature=4.0", "loss": 0.8},
    ]
    linear, gated = sorted(read_trials(read_scores(board)["phrases"]), reverse=True)
    assert (linear.losses, linear.chosen) == (by_setting(LOSSES), Setting(0.01))
    assert (gated.losses, gated.chosen) == (tuned.losses, Setting(0.01))
    page = (board / "index.html").read_text()
    assert "<h2>Learning rates</h2>" in page and "<title>gated_linear</title>" in page

    for file in results.glob("*/*.json"):  # As earlier versions kept them.
        file.write_text(json.dumps(dict(json.loads(file.read_text()), trials=None)))
    page = write_page(board).read_text()
    assert "Learning rates" not in page


def test_a_measure_that_is_equal_for_all_does_not_stand_on_a_scoreboard():
    entries = {
        name: Entry([{"test/exact_match": 0.0, "test/accuracy": x} for x in values], SCHEDULE)
        for name, values in {"linear": (0.1, 0.2, 0.3), "gated": (0.5, 0.6, 0.7)}.items()
    }
    comparison = compare_entries("recall", entries)
    assert comparison.primary_metric.key == "test/accuracy" and comparison.best.label == "gated"


def test_an_interval_is_that_of_student_with_the_variance_of_tuning(answered, tmp_path):
    board = tmp_path / "board"
    answered([candidate("linear"), candidate("gated")], [0.5, 0.7], scoreboard=str(board))
    results = read_scores(board)["phrases"]["gated"].results
    values = [x["test/bleu"] for x in results]
    others = [x["test/bleu"] for x in read_scores(board)["phrases"]["linear"].results]
    variance = max(stdev(values) ** 2, max(stdev(values), stdev(others)) ** 2 / 2)
    half = 4.3027 * math.sqrt(variance * (1 / 3 + TUNING_VARIANCE))
    (cell,) = [row[1] for row in table_of(board).rows if row[0] == "gated"]
    mean = fmean(values)
    assert cell == f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def test_an_interval_stays_within_what_is_possible():
    entries = {
        name: Entry([{"test/exact_match": x} for x in values], SCHEDULE | {"is_tuned": True})
        for name, values in {"linear": (0.0, 1.0, 0.9), "gated": (0.98, 0.99, 1.0)}.items()
    }
    table = score_table({"recall": entries}, {"recall": compare_entries("recall", entries)})
    assert table.rows[0][1] == "0.990 (0.000 to 1.000)"


@pytest.mark.slow
def test_the_answer_is_a_run_of_wandb_where_its_runs_are(answered, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = {"wandb": {"project": "attention-zoo"}}
    answered([candidate("linear"), candidate("gated")], [0.5, 0.7], logger=logger)
    assert len(list((tmp_path / "report" / "wandb").glob("offline-run-*"))) == 1
