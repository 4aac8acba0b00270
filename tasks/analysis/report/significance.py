"""Tests of whether rows differ from their reference by more than chance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from attention_zoo.tasks.analysis.report.comparison import Comparison, Difference, Row
from attention_zoo.tasks.analysis.report.measures import standard_deviation

SIGNATURES = {"test/bleu": "sacrebleu_signature", "test/chrf": "chrf_signature"}
Outputs = dict[int | None, list[dict[str, str]]]  # of the test sentences, by seed


def run_tests(comparison: Comparison, advance: Callable[[], None]) -> None:
    """Add to a comparison the differences from the reference, in each measure that has a test.

    Each test calls `advance`.
    """
    outputs: dict[Row, Outputs] = {
        row: {run.seed: lines for run in row.runs if (lines := run.outputs()) is not None}
        for row in comparison.rows
    }
    reference = comparison.reference
    others = [row for row in comparison.rows if row is not reference]
    for measure in (x for x in comparison.quality if x.test is not None):
        differences = []
        for row in others:
            if measure.test == "bootstrap":
                difference = bootstrap_rows(measure.key, row, reference, outputs)
            else:
                difference = welch_test(row.values(measure.key), reference.values(measure.key))
            differences.append(difference)
            advance()
        corrected = holm_correction(differences)
        comparison.differences[measure.key] = dict(zip(others, corrected, strict=True))


def count_tests(comparison: Comparison) -> int:
    """Return how many tests `run_tests` runs."""
    return sum(x.test is not None for x in comparison.quality) * (len(comparison.rows) - 1)


def bootstrap_rows(
    key: str, row: Row, reference: Row, outputs: Mapping[Row, Outputs]
) -> Difference:
    """Test two rows by bootstrap over sentences; the difference is that of the means over seeds."""
    ours, theirs = row.mean(key), reference.mean(key)
    if ours is None or theirs is None:
        return Difference(None, untested_reason="no value")
    delta = ours - theirs
    signature, *others = {x.results.get(SIGNATURES[key]) for x in (*row.runs, *reference.runs)}
    if others:
        return Difference(delta, untested_reason="other sacreBLEU settings: no test")
    if signature is None:
        return Difference(delta, untested_reason="no sacreBLEU signature: no test")
    resamples = count_resamples(len(outputs))
    test = paired_bootstrap(key, signature, outputs[row], outputs[reference], resamples=resamples)
    # The test's own difference is that of all seeds scored together.
    return Difference(delta, test.p_value, None, test.untested_reason, test.signature)


def count_resamples(rows: int) -> int:
    """Return how many resamples can make a p value significant after correction over the rows."""
    return max(1000, 100 * rows)


def welch_test(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Run Welch's t-test over seeds, for two samples of unequal variances, two-sided.

        t = (m₁ − m₂) / √(s₁²/n₁ + s₂²/n₂),  p = I_{f/(f + t²)}(f/2, ½)

    f of Welch and Satterthwaite, I the regularised incomplete beta function.
    """
    if not ours or not theirs:
        return Difference(None, untested_reason="no value")
    delta = fmean(ours) - fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(delta, untested_reason="one seed: no test")
    variances = [standard_deviation(x) ** 2 / len(x) for x in (ours, theirs)]  # of the means
    if sum(variances) == 0:
        return Difference(delta, untested_reason="no spread over seeds: no test")

    from mpmath import betainc

    t_squared = delta**2 / sum(variances)
    freedom = sum(variances) ** 2 / sum(
        variance**2 / (len(x) - 1) for variance, x in zip(variances, (ours, theirs), strict=True)
    )
    p_value = betainc(freedom / 2, 0.5, 0, freedom / (freedom + t_squared), regularized=True)
    return Difference(delta, float(p_value))


def paired_bootstrap(
    key: str, signature: str, ours: Outputs, theirs: Outputs, *, resamples: int = 1000
) -> Difference:
    """Run sacrebleu's paired bootstrap resampling of test sentences (Koehn 2004), two-sided.

    The outputs of all seeds that both rows have are scored together, by the metric of the key,
    test/bleu or test/chrf, with the settings of sacrebleu's signature. A sentence is drawn with its
    outputs of all seeds, which are not independent samples. No p value is lower than
    1 / (resamples + 1).
    """
    if not ours or not theirs:
        return Difference(None, untested_reason="no test_outputs.jsonl: no test")
    seeds = sorted(ours.keys() & theirs.keys(), key=str)
    if not seeds:
        return Difference(None, untested_reason="no seed in common: no test")
    sides = [[outputs[seed] for seed in seeds] for outputs in (theirs, ours)]
    sentences = [[(x["source"], x["reference"]) for x in each] for side in sides for each in side]
    if any(each != sentences[0] for each in sentences):
        return Difference(None, untested_reason="other test sentences: no test")
    metric = metric_over_seeds(key, signature)
    if metric is None:
        reason = f"settings unknown to the report ({signature}): no test"
        return Difference(None, untested_reason=reason)

    from sacrebleu.significance import PairedTest

    # Each sentence has the outputs of all seeds.
    systems: Any = [
        (name, list(zip(*([x["output"] for x in each] for each in side), strict=True)))
        for name, side in zip(("reference", "row"), sides, strict=True)
    ]
    references = [[reference for _, reference in sentences[0]]]
    test = PairedTest(systems, {key: metric}, references, test_type="bs", n_samples=resamples)
    signatures, scores = test()
    ((name, test_signature),) = signatures.items()
    reference, row = scores[name]
    delta = float(row.score - reference.score)  # type: ignore[union-attr]
    # sacrebleu counts the resamples that differ by more, which are none if all outputs are equal.
    p_value = row.p_value if delta else 1.0  # type: ignore[union-attr]
    return Difference(delta, p_value, signature=str(test_signature))


def metric_over_seeds(key: str, signature: str) -> Any:
    """Return sacrebleu's metric for sentences that have an output from each seed.

    It has the settings of a signature; None if that has settings that are not supported here.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    settings = dict(part.split(":", 1) for part in signature.split("|"))
    lowercase = settings.get("case") == "lc"
    metric: Any
    if key == "test/bleu":
        metric = BLEU(lowercase=lowercase, tokenize=settings.get("tok"))
    else:
        metric = CHRF(lowercase=lowercase, word_order=int(settings.get("nw", 0)))
    metric.num_refs = 1  # The signature states it before references have been seen.
    supported = dict(part.split(":", 1) for part in str(metric.get_signature()).split("|"))
    if supported | {"version": settings.get("version")} != settings:
        return None
    extract = metric._extract_corpus_statistics

    def extract_all(hypotheses: Any, references: Any) -> Any:
        return sum(
            np.asarray(extract(list(each), references)) for each in zip(*hypotheses, strict=True)
        )

    metric._extract_corpus_statistics = extract_all
    metric._aggregate_and_compute = lambda stats: metric._compute_score_from_stats(
        np.sum(stats, axis=0).tolist()
    )
    return metric


def holm_correction(differences: Sequence[Difference]) -> list[Difference]:
    """Adjust the p values by Holm's step-down correction (1979).

    The chance that any difference is wrongly called significant stays below the level:

        adjusted p of rank i of m = max over j ≤ i of min(1, (m − j + 1) p_j)
    """
    ranked = sorted((x.p_value, i) for i, x in enumerate(differences) if x.p_value is not None)
    adjusted = list(differences)
    highest = 0.0
    for rank, (p_value, index) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p_value))
        adjusted[index] = replace(differences[index], adjusted_p_value=highest)
    return adjusted
