"""Runs become rows, rows get labels, and what is not equal is stated."""

from pathlib import Path

import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.comparison import Comparison, compare_runs
from attention_zoo.tasks.analysis.report.conditions import find_conditions
from attention_zoo.tasks.analysis.report.runs import find_runs
from attention_zoo.tasks.analysis.report.significance import count_tests, run_tests
from attention_zoo.tasks.analysis.report.summary import (
    describe_correction,
    describe_tests,
    summarize,
)
from tests.report.folders import write_job, write_run


def compare_folder(folder: Path, baseline: str | None = None) -> Comparison:
    (found,) = compare_runs(find_runs([folder]), baseline)
    run_tests(found, lambda: None)
    return found


def conditions_by_name(comparison: Comparison) -> dict:
    return {x.name: x for x in find_conditions(comparison)}


def test_seeds_are_one_row_and_the_best_is_first(sweep: Path) -> None:
    found = compare_folder(sweep)
    assert [len(row.runs) for row in found.rows] == [3, 3, 3, 3, 3, 2, 3, 3, 2]
    assert found.rows[0].label == "gated rotary"
    assert {row.label for row in found.rows if row.failed} == {
        "delta rotary",
        "performer sinusoidal",
    }
    means = [row.mean("test/bleu") for row in found.rows]
    assert means == sorted(means, reverse=True)
    assert found.primary_metric.key == "test/bleu"


def test_the_winner_is_not_called_better_than_its_peers(sweep: Path) -> None:
    found = compare_folder(sweep)
    text = " ".join(summarize(found))
    evidence = "`gated rotary` over seeds and test sentences"
    alike = next(x for x in summarize(found) if x.startswith("Not significantly different"))
    assert f"from {evidence}: " in alike and "`latent rotary` (p = " in alike
    worse = next(x for x in summarize(found) if x.startswith("Significantly worse"))
    assert worse.startswith(f"Significantly worse than {evidence}, at the 5 % level: ")
    assert "`linear sinusoidal`" in worse and "latent" not in worse
    assert "`delta rotary` (1 of 3 diverged)" in text
    assert "The rows differ in these conditions: seeds, parameters." in text


def test_the_tests_are_stated(sweep: Path) -> None:
    text = " ".join(describe_tests(compare_folder(sweep)))
    for word in ("1,000 bootstrap resamples", "Welch's t-test", "5 % level", "|bs:1000|seed:12345"):
        assert word in text
    assert "corrected for all 36 pairs of rows (Dunnett's T3)" in text
    named = " ".join(describe_tests(compare_folder(sweep, "multi_head rotary")))
    assert "corrected for 8 comparisons with the reference (Holm's method)" in named
    assert "luck" in text and "luck" not in named
    assert (
        "counts as at least 0.5 of the upper quartile of the rows' variances" in text
        and "(test loss)" in text
    )


def test_with_one_seed_a_verdict_says_that_seeds_were_not_tested(tmp_path: Path) -> None:
    for number, (name, skill) in enumerate((("multi_head", 0.9), ("linear", 0.5), ("gated", 0.89))):
        figures = {"test/bleu": 60 * skill}
        write_run(tmp_path / str(number), attention=name, skill=skill, figures=figures)
    found = compare_folder(tmp_path)
    text = " ".join(summarize(found))
    alone = "over test sentences alone (one seed: other seeds were not tested)"
    assert f"Significantly worse than `multi_head` {alone}, at the 5 % level: `linear`." in text
    assert f"Not significantly different from `multi_head` {alone}: `gated` (p = " in text
    assert "one seed" in found.differences["test/bleu"][found.rows[-1]].test_result


def test_a_baseline_is_named(sweep: Path) -> None:
    found = compare_folder(sweep, "linear sinusoidal")
    assert found.reference.label == "linear sinusoidal" and found.best.label == "gated rotary"
    text = " ".join(summarize(found))
    assert "The reference, `linear sinusoidal`, has " in text
    assert "Significantly better than `linear sinusoidal`" in text
    with pytest.raises(UserError, match="baseline must be the label of a row, got 'liner'"):
        compare_runs(find_runs([sweep]), "liner")


def test_one_seed_gives_no_test_of_losses(tmp_path: Path) -> None:
    for number, name in enumerate(("multi_head", "linear")):
        drop_bleu = {"test/bleu": None, "test/chrf": None, "test/exact_match": None}
        write_run(tmp_path / str(number), attention=name, figures=drop_bleu)
    found = compare_folder(tmp_path)
    assert found.primary_metric.key == "test/loss"
    assert "(one seed: no test)" in " ".join(summarize(found))
    assert not list(describe_correction(found))
    assert count_tests(found) == 4  # two losses, speed and memory


def test_what_is_alike_in_all_rows_does_not_decide(tmp_path: Path) -> None:
    for number, name in enumerate(("multi_head", "linear")):
        write_run(tmp_path / str(number), attention=name, figures={"test/bleu": 0.0})
    outputs = (tmp_path / "0" / "test_outputs.jsonl").read_text()
    (tmp_path / "1" / "test_outputs.jsonl").write_text(outputs)
    found = compare_folder(tmp_path)
    assert (found.primary_metric.key, found.quality[-1].key) == ("test/chrf", "test/bleu")
    (difference,) = found.differences["test/bleu"].values()
    assert difference.test_result == "n.s., p = 1.000, one seed"


def test_one_second_is_no_plural(tmp_path: Path) -> None:
    write_run(tmp_path / "0", figures={"seconds": 1.2})
    assert ", 1 second." in " ".join(summarize(compare_folder(tmp_path)))


def test_rows_that_share_the_best_figure_share_the_praise(tmp_path: Path) -> None:
    keys = ("test/bleu", "test/chrf", "test/exact_match", "test/loss", "val/loss")
    alike = {"figures": dict.fromkeys([*keys, "test/perplexity"], 1.0)}
    for number, name in enumerate(("multi_head", "linear")):
        write_run(tmp_path / str(number), attention=name, **alike)
    sentence = next(iter(summarize(compare_folder(tmp_path))))
    assert sentence == "`multi_head`, `linear` have the highest BLEU: 1.00 (one seed)."


@pytest.mark.parametrize(
    ("speeds", "text"),
    [
        (([100], [105]), "`linear` trains fastest (1.05 × tokens/s, one seed)"),
        (([100, 101, 99], [104, 105, 106]), "`linear` trains fastest (1.05 ± 0.01 × tokens/s)"),
        (([100, 110, 90], [105, 115, 95]), None),  # The speeds of seeds differ as much.
        (([100, 100], [105, 105]), "`linear` trains fastest (1.05 ± 0.00 × tokens/s)"),
        (([1000], [1001]), None),
    ],
)
def test_a_speed_is_called_higher_if_it_is_so_over_seeds(
    tmp_path: Path, speeds: tuple[list[float], ...], text: str | None
) -> None:
    for name, skill, values in zip(("multi_head", "linear"), (0.9, 0.89), speeds, strict=True):
        for seed, speed in enumerate(values):
            figures = {"tokens_per_second": speed, "test/bleu": 90 * skill + seed}
            folder = tmp_path / f"{name}{seed}"
            write_run(folder, attention=name, seed=seed, skill=skill, figures=figures)
    found = " ".join(summarize(compare_folder(tmp_path)))
    assert "trains fastest" not in found if text is None else text in found


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ([{"attention": "linear"}, {}], {"linear", "multi_head"}),
        ([{"lr": 0.01}, {}], {"lr=0.01", "lr=0.004"}),
        ([{}], {"multi_head rotary"}),
        (
            [{"choices": {"attention@cross_attention": "additive"}}, {}],
            {"cross_attention=additive", "cross_attention=null"},
        ),
        (
            [{"choices": {"attention@cross_attention": name}} for name in ("additive", "linear")],
            {"additive", "linear"},
        ),
        # What follows from the choice is not repeated.
        (
            [{"attention": "linear", "model": {"ffn_dim": 9}}, {"model": {"ffn_dim": 8}}],
            {"linear", "multi_head"},
        ),
        (
            [{"optimizer": {"decay": 1}}, {"optimizer": {"decay": 2}, "schedule": {"decay": 3}}],
            {"optimizer.decay=1 schedule.decay=null", "optimizer.decay=2 schedule.decay=3"},
        ),
        ([{"position": "позиция"}, {"position": "<script>"}], {"позиция", "<script>"}),
    ],
)
def test_labels_tell_rows_apart(tmp_path: Path, runs: list[dict], labels: set[str]) -> None:
    for number, options in enumerate(runs):
        write_run(tmp_path / str(number), **options)
        # What a sweep gives is told only where it differs.
        write_job(tmp_path / str(number), "optimizer.decay=1", "schedule.decay=2")
    assert {row.label for row in compare_folder(tmp_path).rows} == labels


def test_what_a_sweep_varied_is_in_the_labels_even_if_it_follows(tmp_path: Path) -> None:
    for number, (name, lr) in enumerate((("linear", 0.01), ("multi_head", 0.02))):
        write_run(tmp_path / str(number), attention=name, lr=lr)
        write_job(tmp_path / str(number), f"attention={name}", f"optimizer.lr={lr}")
    labels = {row.label for row in compare_folder(tmp_path).rows}
    assert labels == {"linear lr=0.01", "multi_head lr=0.02"}


def test_what_no_label_tells_is_among_the_conditions(tmp_path: Path) -> None:
    for number, (name, lr) in enumerate((("linear", 0.01), ("multi_head", 0.02))):
        write_run(tmp_path / str(number), attention=name, lr=lr)
    found = conditions_by_name(compare_folder(tmp_path))["other options"]
    assert found.equal is False and found.text == "optimizer.lr: 0.01, 0.02"


@pytest.mark.parametrize(
    ("figures", "name", "text"),
    [
        ({"parameters": 1_060_104}, "parameters", "1.05 M to 1.06 M, 1.0 % apart"),
        ({"tokens_seen": 1}, "tokens seen", "1 to 6.14 M"),
        ({"data_hash": "f" * 64}, "data", "ffffffffffff…: `linear`"),
        ({"data_order": "f" * 64}, "data order", "other batches with seed 1"),
        ({"precision": "bf16-mixed"}, "precision", "bf16-mixed: `linear`"),
        (
            {"hardware": {"cpu": "x", "threads": 1, "gpus": ["H100"]}},
            "hardware",
            "H100, 1 thread: `linear`",
        ),
        (
            {"versions": {"torch": "2.9"}},
            "versions",
            "python 3.11.7 and none; torch 2.13.0 and 2.9",
        ),
        ({"git_commit": "x-dirty"}, "commit", "x-dirty: `linear`"),
        ({"sacrebleu_signature": "a:b"}, "sacreBLEU", "a:b: `linear`"),
        ({"seed": 7}, "seeds", "7: `linear`"),
    ],
)
def test_each_condition_that_is_not_equal_is_stated(
    tmp_path: Path, figures: dict, name: str, text: str
) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", attention="linear", figures=figures)
    found = conditions_by_name(compare_folder(tmp_path))
    assert found[name].equal is False and text in found[name].text
    assert all(x.equal for other, x in found.items() if other not in (name, "data order"))


def test_equal_conditions_are_stated_too(tmp_path: Path) -> None:
    for number, name in enumerate(("linear", "multi_head")):
        write_run(tmp_path / str(number), attention=name)
    found = conditions_by_name(compare_folder(tmp_path))
    assert all(x.equal for x in found.values())
    assert found["data order"].text == "the same batches in the same order for each seed"


def test_seeds_may_see_other_numbers_of_tokens(tmp_path: Path) -> None:
    for number, name in enumerate(("linear", "multi_head")):
        for seed in (1, 2):
            folder = tmp_path / f"{number}{seed}"
            write_run(folder, attention=name, seed=seed, figures={"tokens_seen": 1000 + seed})
    found = conditions_by_name(compare_folder(tmp_path))["tokens seen"]
    assert found.equal and found.text == "1,001 to 1,002, the same in all rows for each seed"


def test_without_a_seed_in_common_no_order_is_called_equal(tmp_path: Path) -> None:
    write_run(tmp_path / "0", seed=1, skill=0.8)
    write_run(tmp_path / "1", attention="linear", seed=2)
    found = conditions_by_name(compare_folder(tmp_path))["data order"]
    assert found.equal is False
    assert found.text == "`linear` has no seed in common with `multi_head`"


def test_what_is_not_on_record_is_not_assumed(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", attention="linear", figures={"data_order": None, "hardware": None})
    found = conditions_by_name(compare_folder(tmp_path))
    for name in ("data order", "hardware"):
        assert found[name].equal is None and found[name].text == "not recorded in 1 of 2 runs"


def test_a_match_is_told(tmp_path: Path) -> None:
    matched = {"matched": {"by": "parameters", "target": 1_000_000, "ffn_dim": 447}}
    for number, name in enumerate(("linear", "multi_head")):
        figures = matched | {"parameters": 1_000_000 + number}
        write_run(
            tmp_path / str(number), attention=name, figures=figures, model={"ffn_dim": 8 + number}
        )
    found = conditions_by_name(compare_folder(tmp_path))
    assert found["matched"].text == "by parameters, within 1 % of 1 M"
    # Nor does the width that it takes make the conditions unequal.
    assert found["parameters"].equal and found["other options"].equal
    write_run(tmp_path / "2", attention="gated", figures=matched | {"parameters": 1_020_000})
    assert conditions_by_name(compare_folder(tmp_path))["parameters"].equal is False


def test_other_data_are_another_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", choices={"data": "copy"})
    titles = [x.title for x in compare_runs(find_runs([tmp_path]), None)]
    assert titles == ["translation on phrases", "translation on copy"]


def test_losses_per_token_do_not_compare_across_tokenizers(tmp_path: Path) -> None:
    for number, size in enumerate((1000, 4000)):
        figures = {"test/bleu": None, "test/chrf": None, "test/exact_match": None}
        figures |= {"test/bits_per_byte": 1.5}
        tokenizer = {"vocabulary_size": size}
        write_run(tmp_path / str(number), tokenizer=tokenizer, figures=figures)
    assert [x.key for x in compare_folder(tmp_path).quality] == ["test/bits_per_byte"]


def test_other_sacrebleu_settings_are_not_tested(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", attention="linear", figures={"sacrebleu_signature": "other:1"})
    found = compare_folder(tmp_path)
    worst = found.difference(found.rows[1])
    assert worst is not None and worst.untested_reason == "other sacreBLEU settings: no test"
