"""Tables and pictures of lengths say what the results say, and can be read."""

import io
import itertools
import math
from pathlib import Path

import pytest
from rich.console import Console

from attention_zoo.tasks.analysis.length_report import (
    draw_extrapolation,
    draw_losses_by_position,
    length_table,
    print_lengths,
    report_sweep,
    shorten_overrides,
    smooth_losses,
    sweep_table,
)
from attention_zoo.tasks.views.charts import series_style
from attention_zoo.tasks.views.figures.style import COLOURS


def results(scale: float = 1.0, refused: bool = False) -> dict:
    """Of a model trained at 64, ever worse beyond."""
    lengths: dict = {"trained_at": 64, "split": "test", "targets": 1234, "refused": {}}
    lengths["scored"] = [32, 64, 128]
    lengths["stride"] = {str(length): length // 2 for length in lengths["scored"]}
    lengths["loss_by_position"] = {
        str(length): [None, *(scale * (2 + index / 64) for index in range(1, length))]
        for length in lengths["scored"]
    }
    if refused:
        lengths["refused"] = {"256": "too long for it."}
    metrics = {f"test/perplexity@{x}": scale * x for x in lengths["scored"]}
    metrics |= {f"test/sliding_perplexity@{x}": scale * x / 2 for x in lengths["scored"]}
    return metrics | {"lengths": lengths}


def answers() -> dict:
    lengths = {"trained_at": 16, "split": "valid", "scored": [16, 32], "refused": {}}
    metrics = {"val/exact_match@16": 1.0, "val/exact_match@32": 0.25}
    return metrics | {"val/accuracy@16": 1.0, "val/loss@16": 0.5, "lengths": lengths}


def printed(function, *arguments) -> str:
    out = io.StringIO()
    function(Console(file=out, width=80), *arguments)
    return out.getvalue()


def test_a_table_compares_with_the_training_length() -> None:
    table = length_table(results(refused=True))
    assert table.columns == ["length", "perplexity", "ratio", "sliding", "sliding ratio", "stride"]
    assert table.rows == [
        ["32", "32.000", "0.500", "16.000", "0.500", "16"],
        ["64, trained", "64.000", "1.000", "32.000", "1.000", "32"],
        ["128", "128.000", "2.000", "64.000", "2.000", "64"],
        ["256", "refused", "", "", "", ""],
    ]
    shown = printed(print_lengths, results(refused=True))
    assert "test split, 1,234 tokens predicted" in shown
    assert shown.splitlines()[-1] == "256 refused: too long for it."
    assert max(map(len, shown.splitlines())) <= 80 and "sliding ratio" in shown


def test_without_the_training_length_there_is_nothing_to_compare_with() -> None:
    lacking = results()
    lacking["lengths"]["trained_at"] = 48
    assert [row[2] for row in length_table(lacking).rows] == ["", "", ""]


def test_what_is_lost_is_infinite() -> None:
    lost = results() | {"test/perplexity@128": None}
    lost["not_finite"] = {"test/perplexity@128": "inf"}
    assert length_table(lost).rows[-1][1:3] == ["inf", "inf"]
    assert draw_extrapolation({"lost": lost, "other": results()})


def test_answers_are_told_by_exact_match() -> None:
    table = length_table(answers())
    assert table.columns == ["length", "exact match", "accuracy", "loss"]
    assert table.rows[0] == ["16, trained", "1.000", "1.000", "0.500"]
    axis = draw_extrapolation({"a": answers()}).axes[0]
    assert axis.lines[0].get_ydata().tolist() == [1.0, 0.25]
    assert axis.get_ylabel() == "valid exact match"


def test_a_sweep_has_a_line_a_job_and_a_picture(tmp_path: Path) -> None:
    jobs = {"position=a": results(), "position=b": results(2.0, refused=True)}
    table = sweep_table("perplexity", jobs)
    assert table.columns == ["", "@32", "@64", "@128", "@256"]
    assert table.rows[0] == ["position=a", "32.000", "64.000", "128.000", ""]
    assert table.rows[1] == ["position=b", "64.000", "128.000", "256.000", "refused"]
    shown = printed(report_sweep, jobs | {"data=recall": answers()}, tmp_path)
    assert "Perplexity by length" in shown and "Exact match by length" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"extrapolation.png", "exact_match.png"}


def test_names_are_as_short_as_they_can_be() -> None:
    assert shorten_overrides(["position=a", "position=b"]) == ["a", "b"]
    for names in (["position=a", "seed=1"], ["position=a seed=1", "position=b seed=1"], ["job 0"]):
        assert shorten_overrides(names) == names


def test_curves_are_means_over_ranges_and_end_at_the_last_position() -> None:
    losses = [float(position) for position in range(1, 65)]
    x, y = smooth_losses(losses)
    ends = [0, 8, 16, 32, 64]
    ranges = [range(first + 1, last + 1) for first, last in itertools.pairwise(ends)]
    assert y == pytest.approx([sum(each) / len(each) for each in ranges])
    geometric = [math.exp(sum(map(math.log, each)) / len(each)) for each in ranges]
    assert x == pytest.approx(geometric)
    assert smooth_losses([None, 4.0])[1] == [4.0]


def test_the_picture_of_a_model_names_its_axes_and_the_training_length(tmp_path: Path) -> None:
    figure = draw_losses_by_position(results())
    (axis,) = figure.axes
    assert "position in the window (means over 1–8, 9–16, …)" in axis.get_xlabel()
    assert "nats" in axis.get_ylabel()
    assert [text.get_text() for text in axis.texts] == ["32", "64", "128", "trained at 64"]
    assert axis.lines[-1].get_xdata() == [64, 64]
    assert axis.get_title() == "Test loss by position, in windows of 32, 64 and 128 tokens"
    figure.savefig(tmp_path / "a.png")
    page = figure.bbox
    for text in axis.texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1


def test_the_picture_of_a_sweep_tells_all_jobs_apart() -> None:
    figure = draw_extrapolation({f"job {number}": results(number + 1) for number in range(12)})
    left, right = figure.axes
    assert (
        left.get_ylabel() == "test perplexity" and left.get_xscale() == right.get_xscale() == "log"
    )
    assert left.get_yscale() == "log"  # 32 to 12 · 128
    assert draw_extrapolation({"one": results()}).axes[0].get_yscale() == "linear"
    assert left.lines[0].get_xdata().tolist() == [32, 64, 128]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"job {x}" for x in range(12)]
    styles = [series_style(index) for index in range(2 * len(COLOURS))]
    assert len({(each["color"], each["linestyle"]) for each in styles}) == len(styles)
    assert len({each["marker"] for each in styles[: len(COLOURS)]}) == len(COLOURS)
