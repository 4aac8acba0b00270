"""A scoreboard: candidates by benchmarks, from results that comparisons have left in a folder.

Each result is a file, `results/<benchmark>/<candidate>/<seed>.json`, so that a further comparison
adds its rows, and the page is drawn from all of them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from attention_zoo.errors import BadInput
from attention_zoo.tasks.analysis.report.comparison import Comparison, Row, equal_last
from attention_zoo.tasks.analysis.report.measures import QUALITY
from attention_zoo.tasks.analysis.report.power import t_quantile
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import run_tests, variance_of_mean
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.published import compare_with_published, read_published
from attention_zoo.tasks.comparison.rate_charts import draw_rates
from attention_zoo.tasks.comparison.rates import TUNING_VARIANCE
from attention_zoo.tasks.comparison.settings import Setting, Trials
from attention_zoo.tasks.run_folder import read_json, replace_text
from attention_zoo.tasks.views.pages import render_page
from attention_zoo.tasks.views.tables import Cell, Table

# Parts of results that the page does not need.
LEFT_OUT = ("history", "lengths", "data", "versions")
SCHEDULE = {"steps", "trials", "is_tuned"}  # what the page reads of one
TRIAL = {"rate", "option", "loss"}
PAGE = "index.html"
NO_RESULT = Cell("–", style="muted")


@dataclass(frozen=True)
class Entry:
    """What is kept of a candidate on a benchmark."""

    results: list[dict[str, Any]]  # of each seed
    schedule: dict[str, Any]  # how it was tuned and trained
    trials: list[dict[str, Any]] | None = None  # of tuning; None if an earlier version kept it

    @property
    def is_tuned(self) -> bool:
        """Return whether the best rate was not at the edge of those that were tried."""
        return bool(self.schedule["is_tuned"])


Scores = Mapping[str, Mapping[str, Entry]]  # by benchmark and candidate


def add_results(
    folder: Path,
    benchmark: str,
    candidate: Candidate,
    runs: Sequence[Run],
    schedule: Mapping[str, Any],
) -> None:
    """Keep the results of a candidate on a benchmark, in place of earlier ones."""
    kept = folder / "results" / benchmark / name_row(candidate).replace("/", "_")
    kept.mkdir(parents=True, exist_ok=True)
    for file in kept.glob("*.json"):
        file.unlink()
    assert candidate.best_setting is not None  # Its runs have it.
    setting = candidate.best_setting._asdict()
    tuning = {**schedule, **setting, "is_tuned": not candidate.is_at_edge}
    # JSON has no infinity, the loss of what diverged.
    trials = [
        {**x._asdict(), "loss": loss if math.isfinite(loss) else None}
        for x, loss in candidate.losses.items()
    ]
    for run in runs:
        results = {key: x for key, x in run.results.items() if key not in LEFT_OUT}
        contents = {"schedule": tuning, "trials": trials, "overrides": list(run.overrides)}
        contents["results"] = results
        replace_text(
            kept / f"{run.seed}.json", json.dumps(contents, indent=1, sort_keys=True) + "\n"
        )


def name_row(candidate: Candidate) -> str:
    """Return the name of a candidate beside those of other comparisons: its mechanism first.

    Its label lacks a mechanism that all candidates of its comparison have.
    """
    label = re.sub(r"(?<==)(True|False)\b", lambda value: value[0].lower(), candidate.label)
    name = "attention="
    chosen = [x.removeprefix(name) for x in candidate.overrides if x.startswith(name)]
    mechanism = chosen[-1:]
    return " ".join([*mechanism, *(x for x in label.split() if x not in mechanism)])


def read_scores(folder: Path) -> dict[str, dict[str, Entry]]:
    """Return all that is kept in the folder of a scoreboard."""
    scores: dict[str, dict[str, Entry]] = {}
    for path in sorted((folder / "results").glob("*/*")):
        files = [read_score(x) for x in sorted(path.glob("*.json"))]
        if files:
            first = files[0]
            entry = Entry([x["results"] for x in files], first["schedule"], first.get("trials"))
            scores.setdefault(path.parent.name, {})[path.name] = entry
    return scores


def read_score(path: Path) -> dict[str, Any]:
    """Return what a scoreboard keeps of one run. Raise BadInput if the file is something else."""
    score = read_json(path)
    schedule = score.get("schedule")
    is_score = isinstance(schedule, dict) and {*schedule} >= SCHEDULE
    trials = score.get("trials") or []
    has_trials = all(isinstance(x, dict) and {*x} >= TRIAL for x in trials)
    if not is_score or not has_trials or not isinstance(score.get("results"), dict):
        raise BadInput(f"{path} is no result of a scoreboard; remove it.")
    return score


def write_page(folder: Path) -> Path:
    """Draw the page of a scoreboard anew; return its path."""
    scores = read_scores(folder)
    comparisons = {name: compare_entries(name, entries) for name, entries in scores.items()}
    trials = {name: read_trials(entries) for name, entries in scores.items()}
    published = [compare_with_published(name, x) for name, x in comparisons.items()]
    page = render_page(
        "analysis/report/scoreboard.html",
        title="Scoreboard",
        table=score_table(scores, comparisons),
        benchmarks=benchmark_table(scores, comparisons),
        rates={name: draw_rates(x) for name, x in trials.items() if x},
        published=[x for x in published if x is not None],
    )
    replace_text(folder / PAGE, page)
    return folder / PAGE


def read_trials(entries: Mapping[str, Entry]) -> list[Trials]:
    """Return the trials of the candidates of a benchmark, by name, where they are kept."""
    found = []
    for name, entry in sorted(entries.items()):
        if entry.trials is not None:
            losses = {
                Setting(x["rate"], x["option"]): math.inf if x["loss"] is None else x["loss"]
                for x in entry.trials
            }
            chosen = Setting(entry.schedule["rate"], entry.schedule["option"])
            found.append(Trials(name, losses, chosen))
    return found


def compare_entries(benchmark: str, entries: Mapping[str, Entry]) -> Comparison:
    """Return the comparison of the candidates on a benchmark, the best first, with its tests.

    The measure is the one that others report on it, if that is known.
    """
    every = [results for entry in entries.values() for results in entry.results]
    # Sentences are not kept, so scores are compared over seeds.
    measures = [x for x in QUALITY if x.test is not None and all(x.key in each for each in every)]
    if not measures:
        raise BadInput(
            f"the results of benchmark {benchmark} have no measure in common: "
            f"{', '.join(entries)}; give another benchmark=NAME, or remove those of other data."
        )
    published = read_published(benchmark) or {}
    measures.sort(key=lambda x: x.key != published.get("measure"))
    rows = []
    for name, entry in entries.items():
        runs = [Run(Path(name), {}, results, (), "trained", "", None) for results in entry.results]
        rows.append(Row({}, runs, label=name))
    metric = replace(equal_last(measures, rows)[0], test="welch")
    rows.sort(key=lambda row: row.mean(metric.key) or 0.0, reverse=metric.better == "higher")
    comparison = Comparison(benchmark, rows, [metric], [], rows[0], False, [], "candidate")
    comparison.tuning_variance = TUNING_VARIANCE
    run_tests(comparison, lambda: None)
    return comparison


def score_table(scores: Scores, comparisons: Mapping[str, Comparison]) -> Table:
    """Return means with 95 % intervals; those that do not differ from the best are marked."""
    candidates = sorted({name for entries in scores.values() for name in entries})
    rows = []
    for candidate in candidates:
        cells = [
            score_cell(comparisons[benchmark], candidate, entries[candidate])
            if candidate in entries
            else NO_RESULT
            for benchmark, entries in scores.items()
        ]
        rows.append([candidate, *cells])
    return Table("Scores", ["candidate", *scores], rows)


def score_cell(comparison: Comparison, candidate: str, entry: Entry) -> Cell:
    """Return the mean of a candidate, its 95 % interval, and what it lacks."""
    metric = comparison.primary_metric
    row = next(x for x in comparison.rows if x.label == candidate)
    values, difference = row.values(metric.key), comparison.difference(row)
    text = metric.format(fmean(values))
    if len(values) > 1:
        floor = comparison.variance_floors.get(metric.key, 0.0)
        variance = variance_of_mean(values, TUNING_VARIANCE, floor)
        half = t_quantile(len(values) - 1) * variance**0.5
        # Means of values that are not normal: the interval of few seeds may leave what is possible.
        low, high = max(0.0, fmean(values) - half), min(metric.highest, fmean(values) + half)
        text += f" ({metric.format(low)} to {metric.format(high)})"
    if not entry.is_tuned:
        text += " (not tuned)"
    is_best = difference is None or not difference.significant
    return Cell(text, fmean(values), "good" if is_best else "")


def benchmark_table(scores: Scores, comparisons: Mapping[str, Comparison]) -> Table:
    """Return what the benchmarks measure, and how long their candidates were tuned and trained."""
    rows = []
    for name, entries in scores.items():
        metric = comparisons[name].primary_metric
        schedules = [entry.schedule for entry in entries.values()]
        counts = [
            {each["steps"] for each in schedules},
            # Earlier versions tuned no options.
            {each["trials"] + each.get("option_trials", 0) for each in schedules},
        ]
        counts.append({len(entry.results) for entry in entries.values()})
        texts = [" and ".join(f"{x:,}" for x in sorted(each)) for each in counts]
        rows.append([name, f"{metric.title}, {metric.better} is better", *texts])
    return Table("Benchmarks", ["benchmark", "measure", "steps", "trials", "seeds"], rows, "llrrr")
