"""Published results on benchmarks, beside ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from attention_zoo.tasks.analysis.report.comparison import (
    SIGNIFICANCE_LEVEL,
    Comparison,
    Row,
)
from attention_zoo.tasks.analysis.report.significance import run_tests
from attention_zoo.tasks.views.tables import Table

FOLDER = files("attention_zoo.tasks") / "comparison/published"
EXACT = 8  # the most mechanisms whose orders are all counted; of more, orders are drawn
DRAWS = 20_000


@dataclass(frozen=True)
class PublishedResults:
    """What others report on a benchmark, and how that agrees with ours."""

    benchmark: str
    setting: str
    sentences: list[str]  # about the sources
    figures: Table | None  # None where no source has any
    orders: Table | None  # whether ours agree; None where we have too few of the mechanisms


def read_published(benchmark: str) -> dict[str, Any] | None:
    """Return the file of published results on a benchmark; None if there is none."""
    file = FOLDER / f"{benchmark}.yaml"
    if not file.is_file():
        return None
    contents: Any = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    return contents


def compare_with_published(benchmark: str, comparison: Comparison) -> PublishedResults | None:
    """Set our results beside those that are published; None if there are none."""
    published = read_published(benchmark)
    if published is None:
        return None
    sources = published["sources"]
    orders = [row for source in sources for row in compare_orders(source, comparison)]
    columns = ["source", "published order", "here", "agrees", "p"]
    return PublishedResults(
        benchmark,
        published["setting"],
        [sentence for source in sources for sentence in describe_source(source)],
        figures_table(benchmark, [x for x in sources if x.get("figures")], comparison),
        Table(f"Published orders on {benchmark}", columns, orders) if orders else None,
    )


def describe_source(source: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a source reports."""
    name = source["source"]
    yield f"{name}, {source['table']} ({source['year']}): {source['metric']}. {source['settings']}"
    yield from (f"{name}: {ordering['claim']}" for ordering in source.get("orderings", []))


def format_p(p_value: float) -> str:
    """Return a p value in three decimals, or that it is smaller."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def figures_table(
    benchmark: str, sources: Sequence[Mapping[str, Any]], comparison: Comparison
) -> Table | None:
    """Return our means beside the figures of sources; None if there are no figures."""
    if not sources:
        return None
    metric = comparison.primary_metric
    ours = {row.label: metric.format(row.mean(metric.key) or 0.0) for row in comparison.rows}
    names = dict.fromkeys([*ours, *(name for x in sources for name in x["figures"])])
    rows = [
        [
            name,
            ours.get(name, "–"),
            *(f"{x['figures'][name]:g}" if name in x["figures"] else "–" for x in sources),
        ]
        for name in names
    ]
    columns = ["mechanism", "here", *(str(x["source"]) for x in sources)]
    return Table(f"Published on {benchmark}", columns, rows)


def compare_orders(source: Mapping[str, Any], comparison: Comparison) -> Iterator[list[str]]:
    """Yield a row for each published order of mechanisms that we have."""
    metric, name = comparison.primary_metric, str(source["source"])
    rows = {row.label: row for row in comparison.rows}
    for ordering in source.get("orderings", []):
        for pair in product(ordering.get("better", []), ordering.get("worse", [])):
            if {*pair} <= rows.keys():
                better, worse = (rows[label] for label in pair)
                yield [name, " > ".join(pair), *compare_pair(better, worse, comparison)]
    # More is better in all figures.
    sign = 1 if metric.better == "higher" else -1
    ours = {label: sign * (row.mean(metric.key) or 0.0) for label, row in rows.items()}
    shared = {label: x for label, x in source.get("figures", {}).items() if label in ours}
    if len(shared) > 2:
        same, pairs, p_value = agreement(shared, ours)
        order = " > ".join(sorted(shared, key=shared.__getitem__, reverse=True))
        agrees = "yes" if p_value < SIGNIFICANCE_LEVEL else "not shown"
        yield [name, order, f"{same} of {pairs} pairs", agrees, format_p(p_value)]


def compare_pair(better: Row, worse: Row, comparison: Comparison) -> list[str]:
    """Return the means of two rows, whether the first is better, and the p value of this pair."""
    metric = comparison.primary_metric
    means = " and ".join(metric.format(x.mean(metric.key) or 0.0) for x in (better, worse))
    against_worse = replace(comparison, reference=worse, reference_given=True, differences={})
    run_tests(against_worse, lambda: None)
    difference = against_worse.difference(better)
    if difference is None or difference.p_value is None or difference.delta is None:
        return [means, "not tested", difference.untested_reason if difference else "–"]
    if difference.p_value >= SIGNIFICANCE_LEVEL:
        agrees = "not shown"
    else:
        is_better = (difference.delta > 0) == (metric.better == "higher")
        agrees = "yes" if is_better else "no: reversed"
    return [means, agrees, format_p(difference.p_value)]


def agreement(theirs: Mapping[str, float], ours: Mapping[str, float]) -> tuple[int, int, float]:
    """Return how many pairs have the same order, of how many, and the p value of that.

    It is the share of orders, all or many that are drawn, that agree as well or better: the
    one-sided permutation test of Kendall's τ (1938). Pairs that are equal in either do not count.
    """
    names = list(theirs)
    x, y = (np.array([each[name] for name in names]) for each in (theirs, ours))
    first, second = map(list, zip(*combinations(range(len(names)), 2), strict=True))
    signs = np.sign(x[first] - x[second])
    orders = permutations(range(len(names)))
    if len(names) > EXACT:
        generator = np.random.default_rng(0)
        orders = (generator.permutation(len(names)) for _ in range(DRAWS))  # type: ignore[assignment]

    def count(values: np.ndarray) -> int:
        return int((signs * np.sign(values[first] - values[second]) > 0).sum())

    same = count(y)
    as_good = [count(y[list(order)]) >= same for order in orders]
    compared = int((signs * np.sign(y[first] - y[second]) != 0).sum())
    return same, compared, float(np.mean(as_good))
