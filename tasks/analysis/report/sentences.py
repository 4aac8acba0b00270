"""Scores on resampled test sentences: how much a score depends on which sentences are tested."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attention_zoo.tasks.analysis.report.comparison import Row

SIGNATURES = {"test/bleu": "sacrebleu_signature", "test/chrf": "chrf_signature"}
RESAMPLES = 1000
SEED = 12345  # sacrebleu's default


@dataclass(frozen=True)
class ResampledScores:
    """The scores of a row's runs on test sets drawn with replacement from its test sentences.

    Test sets of the same size are drawn alike for all rows, so that their scores are paired.
    """

    signature: str | None = None  # sacrebleu's
    test_set: Sequence[tuple[str, str]] = ()  # source and reference
    scores: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # [runs, resamples]
    untested_reason: str = ""  # if there are no scores

    def shared_variance(self) -> float:
        """Return how much of the variance of the mean over runs, s²/n, is due to the sentences."""
        runs = len(self.scores)
        if runs < 2:
            return 0.0
        deviations = self.scores - self.scores.mean(axis=0)
        return float(deviations.var(axis=1, ddof=1).sum() / (runs * (runs - 1)))


def resample_row(key: str, row: Row) -> ResampledScores:
    """Score a row's runs on resampled sentences, with the metric of the key and its signature."""
    signatures = {run.results.get(SIGNATURES[key]) for run in row.runs}
    if len(signatures) > 1:
        return ResampledScores(untested_reason="other sacreBLEU settings: no test")
    (signature,) = signatures
    if signature is None:
        return ResampledScores(untested_reason="no sacreBLEU signature: no test")
    outputs = [lines for run in row.runs if (lines := run.outputs()) is not None]
    if not outputs:
        return ResampledScores(signature, untested_reason="no test_outputs.jsonl: no test")
    test_set, *others = [[(x["source"], x["reference"]) for x in lines] for lines in outputs]
    if any(other != test_set for other in others):
        return ResampledScores(signature, untested_reason="other test sentences: no test")
    metric = metric_of_signature(key, signature)
    if metric is None:
        reason = f"settings unknown to the report ({signature}): no test"
        return ResampledScores(signature, untested_reason=reason)
    hypotheses = [[x["output"] for x in lines] for lines in outputs]
    references = [reference for _, reference in test_set]
    return ResampledScores(signature, test_set, resample_scores(metric, hypotheses, references))


def resample_scores(
    metric: Any, hypotheses: Sequence[Sequence[str]], references: Sequence[str]
) -> np.ndarray:
    """Return the scores of several systems on resampled sentences [systems, resamples].

    As Koehn 2004 and sacrebleu's paired bootstrap, whose default seed draws the same test sets.
    """
    counts = [
        np.asarray(metric._extract_corpus_statistics(each, [references]), dtype=float)
        for each in hypotheses
    ]
    statistics = np.stack(counts, axis=1)  # [sentences, systems, statistics]
    sentences, systems, _ = statistics.shape
    table = statistics.reshape(sentences, -1)
    generator = np.random.default_rng(SEED)
    scores = np.empty((systems, RESAMPLES))
    for number in range(RESAMPLES):
        drawn = generator.choice(sentences, size=sentences, replace=True)
        sums = np.bincount(drawn, minlength=sentences) @ table
        for system, each in enumerate(sums.reshape(systems, -1).astype(int).tolist()):
            scores[system, number] = metric._compute_score_from_stats(each).score
    return scores


def metric_of_signature(key: str, signature: str) -> Any:
    """Return sacrebleu's metric with the settings of a signature; None if any is unsupported."""
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
    return metric
