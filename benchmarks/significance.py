"""How often the tests of a report are wrong, and what they find, in simulated comparisons.

python benchmarks/significance.py [--comparisons 1000] [--output benchmarks/significance.md]
"""

import argparse
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

from attention_zoo.tasks.analysis.report.comparison import (
    SIGNIFICANCE_LEVEL,
    Comparison,
    Difference,
    Row,
)
from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.analysis.report.power import smallest_difference
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.sentences import (
    ResampledScores,
    metric_of_signature,
    resample_scores,
)
from attention_zoo.tasks.analysis.report.significance import run_tests, score_test
from attention_zoo.tasks.views.tables import Table, markdown_table

LOSS = Measure("test/loss", "test loss", "lower", 4, "welch")
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
ROWS_AND_SEEDS = ((3, 2), (3, 3), (7, 3), (12, 3), (12, 5), (25, 10))
TASK_ROWS_AND_SEEDS = ((2, 3), (2, 5), (5, 2), (5, 3), (5, 5), (20, 2), (20, 3), (20, 5))
WORDS = ["the", "a", "small", "red", "old", "boat", "house", "child", "dog", "runs", "sees", "in"]

INTRODUCTION = """# Significance

How often the tests of `attention-zoo report` are wrong, and what they find, in simulated
comparisons. This command makes the page:
`python benchmarks/significance.py --comparisons {comparisons} --output benchmarks/significance.md`

## Losses

Normal losses of {comparisons} comparisons for each line. In the first three columns of
probabilities no rows differ: they are the chance that any row is called different from the
reference, which is to be 0.05 at most.

- *Best row* is what a report does without a baseline.
- *Baseline* is what it does if the first row is named, which has the smallest spread.
- *Best as baseline* is what no report does: the row that the data chose is treated as if it had
  been named beforehand.

Spreads are standard deviations over seeds; unequal ones rise from 1 to 4, or half of the rows have
none. Of unequal seeds, the rows with the smaller spreads have twice as many, which is the harder
case for Welch's test.

*Power* is the chance to find a certain row if all rows but the best are worse by d. d is what
`smallest_difference` gives for a power of 0.8, in standard deviations. *One unstable* is the power
if the last row has ten times the spread of the others.

"""

TASKS = """
## Seeds that solve a task or do not

The exact match of diagnostics can be near 0 or near 1, as some seeds solve the task. Few seeds then
agree by luck, and have hardly any spread. The variance of a row's quality over seeds therefore
counts as at least half of the upper quartile of those of all rows. {comparisons} comparisons of
values within 0.02 of 0 or 1 for each number.

- *Solves 0.5*, *0.2*, *0.8*: each training of any row solves the task with this probability. The
  chance that any row is called different from the best one is to be 0.05 at most.
- *No floor*: what the first of them would be without that floor, in Welch's test.
- *Baseline*: the first of them, if a row is named.
- *Told apart*: two rows solve the task with a probability of one half, half of the others always,
  and the rest never. The chance that one of the latter is called different from the best row.

"""

SCORES = """
## BLEU

Two rows on {sentences} sentences, whose outputs have 80 % of the words right. The seeds differ in
this share, with a standard deviation of 2 %. The chance that rows of the same model are called
different is to be 0.05 at most. With one seed it is more: that tests sentences alone, and a report
says so. *Found* is the chance to find a row that has 86 % right. {comparisons} comparisons for each
number, scored by sacreBLEU.

"""


def simulate_comparison(
    generator: np.random.Generator,
    means: Sequence[float],
    spreads: Sequence[float],
    seeds: Sequence[int],
    baseline: int | None = None,
) -> Comparison:
    """Return a tested comparison of normal losses; the baseline is the number of a row."""
    settings = zip(means, spreads, seeds, strict=True)
    return compare_losses([generator.normal(*x) for x in settings], baseline)


def compare_losses(losses: Iterable[Iterable[float]], baseline: int | None = None) -> Comparison:
    """Return a tested comparison of rows with these losses; the baseline is the number of a row."""
    rows = [
        Row({}, [new_run(float(x)) for x in each], label=str(number))
        for number, each in enumerate(losses)
    ]
    ranked = sorted(rows, key=lambda row: row.mean(LOSS.key) or 0.0)
    reference = ranked[0] if baseline is None else rows[baseline]
    comparison = Comparison(
        "", ranked, [LOSS], [], reference, baseline is not None, label_keys=[], label_title=""
    )
    run_tests(comparison, lambda: None)
    return comparison


def new_run(loss: float) -> Run:
    """Return a run that has a loss and no folder."""
    return Run(Path(), {}, {LOSS.key: loss}, (), "trained", "", None)


def any_significant(comparison: Comparison) -> bool:
    """Return whether any row is called different from the reference."""
    return any(x.significant for x in comparison.differences[LOSS.key].values())


def best_as_baseline(comparison: Comparison) -> bool:
    """Return what `any_significant` would, had the user named the row that is the best."""
    comparison.reference_given = True
    run_tests(comparison, lambda: None)
    return any_significant(comparison)


def false_alarms(
    generator: np.random.Generator, spreads: Sequence[float], seeds: Sequence[int], count: int
) -> list[float]:
    """Return how often any row is called different, of rows that are equal.

    The values are for the best row, a baseline, and the best row as if it were a baseline.
    """
    means = [0.0] * len(spreads)
    alarms = np.zeros(3)
    for _ in range(count):
        chosen = simulate_comparison(generator, means, spreads, seeds)
        named = simulate_comparison(generator, means, spreads, seeds, baseline=0)
        alarms += [any_significant(chosen), any_significant(named), best_as_baseline(chosen)]
    return list(alarms / count)


def power_at(
    generator: np.random.Generator,
    difference: float,
    rows: int,
    seeds: int,
    count: int,
    last_spread: float = 1.0,
) -> float:
    """Return how often a row is found, of rows that are equally far behind the best.

    The best is the second row. The last row may have another spread than the others.
    """
    found = 0
    means = [difference] * rows
    means[1] = 0.0
    spreads = [1.0] * (rows - 1) + [last_spread]
    for _ in range(count):
        comparison = simulate_comparison(generator, means, spreads, [seeds] * rows)
        tested = {row.label: x for row, x in comparison.differences[LOSS.key].items()}
        found += "0" in tested and tested["0"].significant
    return found / count


def solved_by_chance(
    generator: np.random.Generator, chances: Sequence[float], seeds: int
) -> np.ndarray:
    """Return values near 0 or 1 for each row and seed, with the chance of each row to be near 0.

    They are losses: near 0 is a task that is solved.
    """
    shape = (len(chances), seeds)
    solved = generator.random(shape) < np.array(chances)[:, None]
    distance = generator.uniform(0, 0.02, shape)
    return np.where(solved, distance, 1 - distance)


def has_alarm_without_floor(comparison: Comparison) -> bool:
    """Return what `any_significant` would if the variance had no floor."""
    tests = comparison.differences[LOSS.key].values()
    return any(x.significant or x.is_due_to_floor for x in tests)


def spreads_and_seeds(rows: int, seeds: int) -> dict[str, tuple[list[float], list[int]]]:
    """Return the spreads and the numbers of seeds of the rows, by name."""
    rising = np.geomspace(1, 4, rows).tolist()
    twice = [seeds * (2 if index < rows / 2 else 1) for index in range(rows)]
    return {
        "equal": ([1.0] * rows, [seeds] * rows),
        "1 to 4": (rising, [seeds] * rows),
        "1 to 4, unequal seeds": (rising, twice),
        "half 0": ([0.0] * (rows // 2) + [1.0] * (rows - rows // 2), [seeds] * rows),
    }


def simulate_score_test(
    chance: random.Random, seeds: int, sentences: int, advantage: float = 0.0
) -> Difference:
    """Test BLEU of two models whose words are right with a skill that depends on the seed."""
    references = [[chance.choice(WORDS) for _ in range(12)] for _ in range(sentences)]
    texts = [" ".join(x) for x in references]
    metric = metric_of_signature("test/bleu", SIGNATURE)
    values, resampled = [], []
    for mean in (0.8, 0.8 + advantage):
        skills = [chance.gauss(mean, 0.02) for _ in range(seeds)]
        outputs = [[translate(chance, skill, x) for x in references] for skill in skills]
        values.append([metric.corpus_score(x, [texts]).score for x in outputs])
        test_set = [("", x) for x in texts]
        scores = resample_scores(metric, outputs, texts)
        resampled.append(ResampledScores(SIGNATURE, test_set, scores))
    return score_test(*values, *resampled)


def translate(chance: random.Random, skill: float, words: Sequence[str]) -> str:
    """Return words of which each is right with the probability `skill`."""
    return " ".join(x if chance.random() < skill else chance.choice(WORDS) for x in words)


def tabulate_losses(count: int, advance: Callable[[], None]) -> Table:
    """Simulate comparisons of losses."""
    generator, lines = np.random.default_rng(0), []
    for rows, seeds in ROWS_AND_SEEDS:
        for name, (spreads, counts) in spreads_and_seeds(rows, seeds).items():
            alarms = false_alarms(generator, spreads, counts, count)
            cells = ["–"] * 3
            if name == "equal":
                difference = smallest_difference(1.0, seeds, rows)
                powers = [
                    power_at(generator, difference, rows, seeds, count, last_spread)
                    for last_spread in (1.0, 10.0)
                ]
                cells = [f"{x:.2f}" for x in (difference, *powers)]
            lines.append([str(rows), str(seeds), name, *(f"{x:.3f}" for x in alarms), *cells])
            advance()
    titles = ["rows", "seeds", "spreads", "best row", "baseline"]
    return Table("Losses", [*titles, "best as baseline", "d", "power", "one unstable"], lines)


def tabulate_tasks(count: int, advance: Callable[[], None]) -> Table:
    """Simulate comparisons of tasks that some seeds solve."""
    generator, lines = np.random.default_rng(0), []
    for rows, seeds in TASK_ROWS_AND_SEEDS:
        shares = np.zeros(6)
        others = rows - 2
        mixed = [0.5, 0.5, *[1.0] * (others - others // 2), *[0.0] * (others // 2)]
        for _ in range(count):
            first, *rest = (
                solved_by_chance(generator, [chance] * rows, seeds) for chance in (0.5, 0.2, 0.8)
            )
            alarms = [any_significant(compare_losses(x)) for x in (first, *rest)]
            without = has_alarm_without_floor(compare_losses(first))
            named = any_significant(compare_losses(first, baseline=0))
            told = compare_losses(solved_by_chance(generator, mixed, seeds)).differences[LOSS.key]
            last = [x.significant for row, x in told.items() if row.label == str(rows - 1)]
            shares += [*alarms, without, named, any(last)]
        cells = [f"{x:.3f}" for x in shares / count]
        lines.append([str(rows), str(seeds), *cells[:-1], cells[-1] if others > 1 else "–"])
        advance()
    titles = ["rows", "seeds", "solves 0.5", "solves 0.2", "solves 0.8", "no floor", "baseline"]
    return Table("Tasks", [*titles, "told apart"], lines)


def tabulate_scores(count: int, sentences: int, advance: Callable[[], None]) -> Table:
    """Simulate tests of BLEU."""
    chance, lines = random.Random(0), []
    for seeds in (1, 2, 3, 5):
        shares = []
        for advantage in (0.0, 0.06):
            tests = [simulate_score_test(chance, seeds, sentences, advantage) for _ in range(count)]
            shares.append(sum((x.p_value or 0.0) < SIGNIFICANCE_LEVEL for x in tests) / count)
        lines.append([str(seeds), str(tests[0].evidence), *(f"{x:.3f}" for x in shares)])
        advance()
    return Table("BLEU", ["seeds", "tested over", "same model", "found"], lines)


def main() -> None:
    """Simulate the comparisons, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="write the page to this file")
    arguments = parser.parse_args()
    count, sentences = arguments.comparisons, 60
    scored = max(1, count // 4)
    total = 4 * len(ROWS_AND_SEEDS) + len(TASK_ROWS_AND_SEEDS) + 4
    with Progress() as progress:
        bar = progress.add_task("simulating", total=total)
        losses = tabulate_losses(count, lambda: progress.advance(bar))
        tasks = tabulate_tasks(count, lambda: progress.advance(bar))
        scores = tabulate_scores(scored, sentences, lambda: progress.advance(bar))
    page = INTRODUCTION.format(comparisons=count) + markdown_table(losses) + "\n"
    page += TASKS.format(comparisons=count) + markdown_table(tasks) + "\n"
    page += SCORES.format(sentences=sentences, comparisons=scored) + markdown_table(scores) + "\n"
    if arguments.output is None:
        print(page)
    else:
        arguments.output.write_text(page)


if __name__ == "__main__":
    main()
