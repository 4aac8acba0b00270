"""Whether two rows differ by more than chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attention_zoo.tasks.analysis.report.measures import deviation

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A row's mean less that of the reference.

    Args:
        amount: in units of the measure; None, where one of the two has no figure.
        p: of the test, two-sided; None, where there is none.
        adjusted: p after Holm's correction over the rows.
        lacking: why there is no test.
        signature: sacrebleu's of a bootstrap.
    """

    amount: float | None
    p: float | None = None
    adjusted: float | None = None
    lacking: str = ""
    signature: str = ""

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted < LEVEL

    @property
    def told(self) -> str:
        """The verdict of the test in a few words."""
        if self.adjusted is None:
            return self.lacking
        p = "p < 0.001" if self.adjusted < 0.001 else f"p = {self.adjusted:.3f}"
        return p if self.significant else f"n.s., {p}"


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Welch's t-test over seeds, for two samples of unequal variances, two-sided.

        t = (m₁ − m₂) / √(s₁²/n₁ + s₂²/n₂),  p = I_{f/(f + t²)}(f/2, ½)

    f of Welch and Satterthwaite, I the regularised incomplete beta function.
    """
    if not ours or not theirs:
        return Difference(None, lacking="no figure")
    amount = math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(amount, lacking="one seed: no test")
    shares = [deviation(x) ** 2 / len(x) for x in (ours, theirs)]
    if sum(shares) == 0:
        return Difference(amount, lacking="no spread over seeds: no test")

    from mpmath import betainc

    t_squared = amount**2 / sum(shares)
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(x) - 1) for share, x in zip(shares, (ours, theirs), strict=True)
    )
    p = betainc(freedom / 2, 0.5, 0, freedom / (freedom + t_squared), regularized=True)
    return Difference(amount, float(p))


Outputs = dict[int | None, list[dict[str, str]]]  # of the test sentences, by seed


def bootstrap(
    key: str, signature: str, ours: Outputs, theirs: Outputs, *, resamples: int = 1000
) -> Difference:
    """Paired bootstrap resampling of the test sentences (Koehn 2004), sacrebleu's, two-sided.

    The outputs of all seeds that both have are scored together. A sentence is drawn with its
    outputs of all seeds, as those are no sentences of their own.

    Args:
        key: test/bleu or test/chrf.
        signature: sacrebleu's of the runs, whose settings are used.
        resamples: how often the sentences are drawn; no p is lower than 1 / (resamples + 1).
    """
    if not ours or not theirs:
        return Difference(None, lacking="no test_outputs.jsonl: no test")
    seeds = sorted(ours.keys() & theirs.keys(), key=str)
    if not seeds:
        return Difference(None, lacking="no seed in common: no test")
    sides = [[outputs[seed] for seed in seeds] for outputs in (theirs, ours)]
    sentences = [[(x["source"], x["reference"]) for x in each] for side in sides for each in side]
    if any(each != sentences[0] for each in sentences):
        return Difference(None, lacking="other test sentences: no test")
    metric = metric_over_seeds(key, signature)
    if metric is None:
        return Difference(None, lacking=f"settings unknown to the report ({signature}): no test")

    from sacrebleu.significance import PairedTest

    # For each sentence, the outputs of all seeds.
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
    amount = float(row.score - reference.score)  # type: ignore[union-attr]
    # sacrebleu counts the resamples that differ by more: none, where all are as equal as the rows.
    p = row.p_value if amount else 1.0  # type: ignore[union-attr]
    return Difference(amount, p, signature=str(signatures[name]))


def metric_over_seeds(key: str, signature: str) -> "Metric | None":
    """Sacrebleu's metric, by a signature's settings, of texts that have an output a seed each.

    None, where the signature says other settings than these two.
    """
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    said = dict(part.split(":", 1) for part in signature.split("|"))
    lowercase = said.get("case") == "lc"
    metric: Any
    if key == "test/bleu":
        metric = BLEU(lowercase=lowercase, tokenize=said.get("tok"))
    else:
        metric = CHRF(lowercase=lowercase, word_order=int(said.get("nw", 0)))
    metric.num_refs = 1  # What its signature says until references have been seen.
    settings = dict(part.split(":", 1) for part in str(metric.get_signature()).split("|"))
    if settings | {"version": said.get("version")} != said:
        return None
    of_one = metric._extract_corpus_statistics

    def of_all(hypotheses: Any, references: Any) -> Any:
        return sum(
            np.asarray(of_one(list(each), references)) for each in zip(*hypotheses, strict=True)
        )

    metric._extract_corpus_statistics = of_all
    metric._aggregate_and_compute = lambda stats: metric._compute_score_from_stats(
        np.sum(stats, axis=0).tolist()
    )
    return metric


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Holm's step-down correction (1979) of those that have a p, which keeps the chance that any
    difference is called significant wrongly below the level:

        adjusted p of rank i of m = max over j ≤ i of min(1, (m − j + 1) p_j)
    """
    ranked = sorted((x.p, place) for place, x in enumerate(differences) if x.p is not None)
    adjusted = list(differences)
    highest = 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        adjusted[place] = replace(differences[place], adjusted=highest)
    return adjusted
