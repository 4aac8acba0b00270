"""What a comparison says, in sentences: what is best, how sure that is, and at what cost.

Labels stand in backticks, as in Markdown.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row, outcomes, resamples
from attention_zoo.tasks.analysis.report.conditions import conditions
from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import LEVEL

NAMED = 6  # rows that a sentence names, before the rest is counted
OUTCOMES = ("trained", "refused", "diverged", "failed", "killed", "not run", "unfinished")
TOLD = ("tokens_per_second", "peak_memory_bytes", "parameters", "decode_state_bytes", "seconds")
CHEAPER = {
    "tokens_per_second": "trains fastest",
    "peak_memory_bytes": "takes the least memory",
    "decode_state_bytes": "keeps the least for decoding",
}


def counted(runs: Sequence[Run]) -> str:
    """12 jobs: 9 trained, 1 refused, 1 diverged, 1 killed."""
    found = Counter(run.outcome for run in runs)
    told = ", ".join(f"{found[outcome]} {outcome}" for outcome in OUTCOMES if found[outcome])
    return f"{len(runs)} job{'s' * (len(runs) != 1)}: {told}"


def answer(comparison: Comparison) -> Iterator[str]:
    """The sentences at the head of the report."""
    best, reference, first = comparison.best, comparison.reference, comparison.primary_metric
    extreme = "highest" if first.better == "higher" else "lowest"
    tied = [row for row in comparison.rows if row.mean(first.key) == best.mean(first.key)]
    have = "has" if len(tied) == 1 else "have"
    names = listed(tied, lambda row: f"`{row.label}`")
    yield f"{names} {have} the {extreme} {first.title}: {spread(best, first)}."
    if comparison.chosen and reference is not best:
        yield f"The reference is `{reference.label}`, with {spread(reference, first)}."
    if len(comparison.rows) > 1:
        yield from certainty(comparison)
    cost = [
        f"{x.text(best.mean(x.key))} {x.title}"
        for x in comparison.cost
        if x.key in TOLD and best.values(x.key)
    ]
    if cost:
        yield f"What `{best.label}` costs: {', '.join(cost)}."
    yield from cheaper(comparison)
    broken = [row for row in comparison.rows if row.lost]
    if broken:
        lost = "; ".join(
            f"`{row.label}` {len(row.lost)} of {len(row.lost) + len(row.runs)} "
            f"({', '.join(sorted({run.outcome for run in row.lost}))})"
            for row in broken
        )
        yield f"Means are over the seeds that were trained. Without a result: {lost}."
    unequal = [x.name for x in conditions(comparison) if x.equal is False]
    if unequal:
        yield f"Not equal between the rows: {', '.join(unequal)}. See the conditions."


def spread(row: Row, measure: Measure) -> str:
    values = row.values(measure.key)
    if len(values) == 1:
        return f"{measure.spread(values)} (one seed)"
    return f"{measure.spread(values)} ({len(values)} seeds)"


def certainty(comparison: Comparison) -> Iterator[str]:
    """What the tests say of the rows, as seen from the reference."""
    found = dict(outcomes(comparison))
    name = f"`{comparison.reference.label}`"
    level = f"{100 * LEVEL:.0f} % level"
    for word in ("better", "worse"):
        if found[word]:
            than = f"Significantly {word} than {name}, at the {level}"
            yield f"{than}: {listed(found[word], lambda row: f'`{row.label}`')}."
    if found["open"]:
        shown = listed(found["open"], lambda row: f"`{row.label}` ({told(comparison, row)})")
        yield f"Not shown to differ from {name}: {shown}."
    reasons: dict[str, list[Row]] = {}
    for row in found["untested"]:
        reasons.setdefault(told(comparison, row), []).append(row)
    for reason, rows in reasons.items():
        every = len(rows) == len(comparison.rows) - 1
        shown = "the others" if every else listed(rows, lambda row: f"`{row.label}`")
        yield f"No test of {shown} against {name} ({reason}): differences may be chance."


def told(comparison: Comparison, row: Row) -> str:
    difference = comparison.difference(row)
    assert difference is not None
    return difference.told.removeprefix("n.s., ")


def listed(rows: Sequence[Row], name: Callable[[Row], str]) -> str:
    names = [name(row) for row in rows[:NAMED]]
    rest = [f"{len(rows) - NAMED} more"] if len(rows) > NAMED else []
    return ", ".join([*names, *rest])


def cheaper(comparison: Comparison) -> Iterator[str]:
    """Which of the rows that are not shown to differ from the best cost less."""
    best = comparison.best
    if comparison.reference is not best or len(comparison.rows) < 2:
        return
    peers = [best, *dict(outcomes(comparison))["open"]]
    found = []
    for measure in (x for x in comparison.cost if x.key in CHEAPER):
        costs = {row.label: x for row in peers if (x := row.mean(measure.key)) is not None}
        base = costs.get(best.label)
        if not base:
            continue
        least = (max if measure.better == "higher" else min)(costs, key=lambda name: costs[name])
        times = costs[least] / base
        if abs(times - 1) > 0.01:
            found.append(f"`{least}` {CHEAPER[measure.key]} ({times:.2g} × {measure.title})")
    if found:
        yield f"Of those not shown to differ from `{best.label}`, {', '.join(found)}."


def how_tested(comparison: Comparison) -> Iterator[str]:
    """Test, correction and level."""
    keys = comparison.differences
    by: dict[str, list[str]] = {"bootstrap": [], "welch": []}
    for measure in comparison.quality:
        if measure.test is not None and measure.key in keys:
            by[measure.test].append(measure.title)
    chosen = "as asked" if comparison.chosen else "the best row"
    yield f"Differences are from `{comparison.reference.label}`, {chosen}."
    if by["bootstrap"]:
        signatures = {
            x.signature for found in keys.values() for x in found if x is not None and x.signature
        }
        times = resamples(len(comparison.rows))
        yield (
            f"{' and '.join(by['bootstrap'])}: paired bootstrap resampling of the test sentences, "
            f"{times:,} times, by sacrebleu, the outputs of all seeds together; it says whether "
            "other sentences would show the difference, not other seeds"
            + (f" ({'; '.join(sorted(signatures))})." if signatures else ".")
        )
    if by["welch"]:
        titles = ", ".join(by["welch"]).capitalize()
        yield f"{titles}: Welch's t-test over seeds; one seed gives no test."
    yield (
        f"All tests are two-sided, at the {100 * LEVEL:.0f} % level, corrected over the rows of a "
        "measure by Holm's method. n.s. means not significant: the figures do not decide, which is "
        "not to say that the rows are equal."
    )
    if not comparison.chosen and len(comparison.rows) > 2:
        yield (
            "The best row was found by the same figures, which flatters it: --baseline names a "
            "reference beforehand."
        )
