"""Tests of whether two rows differ by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attention_zoo.tasks.analysis.report.measures import mean, standard_deviation

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

SIGNIFICANCE_LEVEL = 0.05
Outputs = dict[int | None, list[dict[str, str]]]  # of the test sentences, by seed


@dataclass(frozen=True)
class Difference:
    """A row's mean minus that of the reference, and a two-sided test of it."""

    delta: float | None  # in units of the measure; None if either row has no value
    p_value: float | None = None  # None if there is no test
    adjusted_p_value: float | None = None  # after Holm's correction over the rows
    untested_reason: str = ""
    signature: str = ""  # that of sacrebleu

    @property
    def significant(self) -> bool:
        """Return whether the adjusted p value is below the level."""
        return self.adjusted_p_value is not None and self.adjusted_p_value < SIGNIFICANCE_LEVEL

    @property
    def p_text(self) -> str:
        """Return the adjusted p value, or the reason why there is none."""
        if self.adjusted_p_value is None:
            return self.untested_reason
        p_value = self.adjusted_p_value
        return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"

    @property
    def test_result(self) -> str:
        """Return the p value, with n.s. if the difference is not significant."""
        tested = self.adjusted_p_value is not None
        return f"n.s., {self.p_text}" if tested and not self.significant else self.p_text


def welch_test(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Run Welch's t-test over seeds, for two samples of unequal variances, two-sided.

        t = (m₁ − m₂) / √(s₁²/n₁ + s₂²/n₂),  p = I_{f/(f + t²)}(f/2, ½)

    f of Welch and Satterthwaite, I the regularised incomplete beta function.
    """
    if not ours or not theirs:
        return Difference(None, untested_reason="no value")
    delta = (mean(ours) or 0.0) - (mean(theirs) or 0.0)
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
    signatures, scores = PairedTest(
        systems, {key: metric}, references, test_type="bs", n_samples=resamples
    )()
    (name,) = signatures
    reference, row = scores[name]
    delta = float(row.score - reference.score)  # type: ignore[union-attr]
    # sacrebleu counts the resamples that differ by more, which are none if all outputs are equal.
    p_value = row.p_value if delta else 1.0  # type: ignore[union-attr]
    return Difference(delta, p_value, signature=str(signatures[name]))


def metric_over_seeds(key: str, signature: str) -> "Metric | None":
    """Return sacrebleu's metric for sentences that have an output from each seed.

    It has the settings of a signature; None if that has settings that are not supported here.
    """
    import numpy as np
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
