"""How often the tests of a report are wrong, and what they find, in simulated comparisons.

python benchmarks/significance.py [--comparisons 1000] [--output benchmarks/significance.md]
"""

import argparse
import random
from collections.abc import Callable, Sequence
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

Spreads are standard deviations over seeds; unequal ones rise from 1 to 4. Of unequal seeds, the
rows with the smaller spreads have twice as many, which is the harder case for Welch's test.

*Power* is the chance to find a certain row if all rows but the best are worse by d. d is what
`smallest_difference` gives for a power of 0.8, in standard deviations.

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
    rows = [
        Row({}, [new_run(float(x)) for x in generator.normal(mean, spread, count)], label=str(i))
        for i, (mean, spread, count) in enumerate(zip(means, spreads, seeds, strict=True))
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
    generator: np.random.Generator, difference: float, rows: int, seeds: int, count: int
) -> float:
    """Return how often a row is found, of rows that are equally far behind the best."""
    found = 0
    for _ in range(count):
        means = [difference] * (rows - 1) + [0.0]
        comparison = simulate_comparison(generator, means, [1.0] * rows, [seeds] * rows)
        tested = {row.label: x for row, x in comparison.differences[LOSS.key].items()}
        found += "0" in tested and tested["0"].significant
    return found / count


def spreads_and_seeds(rows: int, seeds: int) -> dict[str, tuple[list[float], list[int]]]:
    """Return the spreads and the numbers of seeds of the rows, by name."""
    rising = np.geomspace(1, 4, rows).tolist()
    twice = [seeds * (2 if index < rows / 2 else 1) for index in range(rows)]
    return {
        "equal": ([1.0] * rows, [seeds] * rows),
        "1 to 4": (rising, [seeds] * rows),
        "1 to 4, unequal seeds": (rising, twice),
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
            cells = ["–", "–"]
            if name == "equal":
                difference = smallest_difference(1.0, seeds, rows)
                power = power_at(generator, difference, rows, seeds, count)
                cells = [f"{difference:.2f}", f"{power:.2f}"]
            lines.append([str(rows), str(seeds), name, *(f"{x:.3f}" for x in alarms), *cells])
            advance()
    titles = ["rows", "seeds", "spreads", "best row", "baseline"]
    return Table("Losses", [*titles, "best as baseline", "d", "power"], lines)


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
    with Progress() as progress:
        bar = progress.add_task("simulating", total=3 * len(ROWS_AND_SEEDS) + 4)
        losses = tabulate_losses(count, lambda: progress.advance(bar))
        scores = tabulate_scores(scored, sentences, lambda: progress.advance(bar))
    page = INTRODUCTION.format(comparisons=count) + markdown_table(losses) + "\n"
    page += SCORES.format(sentences=sentences, comparisons=scored) + markdown_table(scores) + "\n"
    if arguments.output is None:
        print(page)
    else:
        arguments.output.write_text(page)


if __name__ == "__main__":
    main()
