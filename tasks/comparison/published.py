"""Published results on benchmarks, beside ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations, permutations
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from attention_zoo.tasks.views.tables import Table

FOLDER = files("attention_zoo.tasks") / "comparison/published"
EXACT = 8  # the most mechanisms whose orders are all counted; of more, orders are drawn
DRAWS = 20_000


@dataclass(frozen=True)
class PublishedResults:
    """What others report on a benchmark, and how that agrees with ours."""

    benchmark: str
    setting: str
    sentences: list[str]
    table: Table | None  # None where no source has figures


def read_published(benchmark: str) -> dict[str, Any] | None:
    """Return the file of published results on a benchmark; None if there is none."""
    file = FOLDER / f"{benchmark}.yaml"
    if not file.is_file():
        return None
    contents: Any = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    return contents


def compare_with_published(benchmark: str, ours: Mapping[str, float]) -> PublishedResults | None:
    """Set our scores, of which more is better, beside those that are published."""
    published = read_published(benchmark)
    if published is None:
        return None
    sources = [x for x in published["sources"] if x.get("figures")]
    names = dict.fromkeys([*ours, *(name for x in sources for name in x["figures"])])
    rows = [
        [
            name,
            f"{ours[name]:.3f}" if name in ours else "–",
            *(f"{x['figures'][name]:g}" if name in x["figures"] else "–" for x in sources),
        ]
        for name in names
    ]
    columns = ["mechanism", "here", *(str(x["source"]) for x in sources)]
    table = Table(f"Published on {benchmark}", columns, rows) if sources else None
    sentences = [line for x in published["sources"] for line in describe_source(x, ours)]
    return PublishedResults(benchmark, published["setting"], sentences, table)


def describe_source(source: Mapping[str, Any], ours: Mapping[str, float]) -> Iterator[str]:
    """Yield what a source reports, and whether our order of the mechanisms is the same."""
    where = f"{source['source']}, {source['table']} ({source['year']}): {source['metric']}."
    yield f"{where} {source['settings']}"
    for ordering in source.get("orderings", []):
        yield f"{source['source']}: {ordering}"
    shared = {name: x for name, x in source.get("figures", {}).items() if name in ours}
    if len(shared) > 2:
        same, pairs, p_value = agreement(shared, ours)
        yield (
            f"{same} of {pairs} pairs of mechanisms are in the same order here as in "
            f"{source['source']} (p = {p_value:.3f} that a random order agrees as well)."
        )


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
