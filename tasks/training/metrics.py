"""Metrics as torchmetrics objects, so that any number of processes agree on one figure.

BLEU and chrF are sacrebleu's own: it counts, sample by sample, and it scores the summed counts.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from attention_zoo.errors import UserError


class _Samples(Metric):
    """Whole-number statistics of each sample, of which the score is made of the sums.

    The state is rows of (index, statistics): a sample that two processes saw counts once, by its
    index.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    rows: list[Tensor]

    def __init__(self, statistics: int) -> None:
        super().__init__(dist_sync_fn=functools.partial(_gather_rows, 1 + statistics))
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def _add(self, index: Sequence[int] | Tensor, statistics: Sequence[Sequence[int]]) -> None:
        keys = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        counts = torch.tensor(statistics, dtype=torch.int64, device=self.device)
        self.rows.append(torch.cat([keys[:, None], counts], 1))

    def _sums(self) -> list[int]:
        if len(self.rows) == 0:
            raise UserError(
                f"{type(self).__name__} needs at least one sample, got none; "
                "see whether the split is empty."
            )
        samples = {index: counts for index, *counts in dim_zero_cat(self.rows).tolist()}
        return [sum(column) for column in zip(*samples.values(), strict=True)]


def _gather_rows(width: int, rows: Tensor, group: Any = None) -> list[Tensor]:
    """All processes' rows [n, width]. One that saw no sample comes with an empty tensor of another
    shape and type, on which gathering would hang or fail."""
    if rows.numel() == 0:
        rows = torch.empty(0, width, dtype=torch.int64, device=rows.device)
    return gather_all_tensors(rows, group)


def _check_pairs(hypotheses: Sequence[str], references: Sequence[Any], index: Any) -> None:
    if not len(hypotheses) == len(references) == len(index):
        raise UserError(
            "hypotheses, references and index must be equally many, got "
            f"{len(hypotheses)}, {len(references)} and {len(index)}."
        )


class _Sacre(_Samples):
    """A metric of sacrebleu's, fed in batches."""

    def __init__(self, scorer: BLEU | CHRF, statistics: int) -> None:
        super().__init__(statistics)
        self.scorer = scorer
        # What the signature says until references have been seen.
        self.scorer.num_refs = 1

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]],
        index: Sequence[int] | Tensor,
    ) -> None:
        """Count a batch.

        Args:
            hypotheses: b texts, detokenised.
            references: b texts, or for each hypothesis the list of its references.
            index: [b], the line number of each in the split.
        """
        _check_pairs(hypotheses, references, index)
        if len(hypotheses) == 0:
            return
        lists = [[each] if isinstance(each, str) else each for each in references]
        # sacrebleu takes streams: the first reference of all, the second of all, …, None for none.
        streams = list(itertools.zip_longest(*lists))
        self._add(index, self.scorer._extract_corpus_statistics(hypotheses, streams))

    def compute(self) -> Tensor:
        score = self.scorer._compute_score_from_stats(self._sums()).score
        return torch.tensor(score, device=self.device)

    @property
    def signature(self) -> str:
        """sacrebleu's: all that must be known to compare the score with another."""
        return str(self.scorer.get_signature())


class SacreBleu(_Sacre):
    """Corpus BLEU in 0 … 100 (Papineni et al. 2002; signatures: Post 2018, arXiv:1804.08771).

        BLEU = 100 min(1, exp(1 - r/c)) (p_1 p_2 p_3 p_4) ** (1/4)

    p_n the share of the hypotheses' n-grams that are in the reference, c and r the lengths.
    The defaults are sacrebleu's: mteval-v13a tokens, mixed case.

    Args:
        tokenize: one of sacrebleu's tokenizers: "13a", "intl", "char", "zh", "none", …
        lowercase: score without regard to case.
        smooth_method: "exp", "floor", "add-k" or "none", for an order without a match.
        smooth_value: of "floor" (default 0.1) and "add-k" (default 1).
        max_ngram_order: longest n-gram.
        effective_order: leave out orders longer than the hypothesis; for single sentences.

    Raises:
        UserError: a name that sacrebleu does not know; when computed without a sample.
    """

    def __init__(
        self,
        *,
        tokenize: str = "13a",
        lowercase: bool = False,
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        max_ngram_order: int = 4,
        effective_order: bool = False,
    ) -> None:
        for option, value, known in [
            ("tokenize", tokenize, BLEU.TOKENIZERS),
            ("smooth_method", smooth_method, BLEU.SMOOTH_DEFAULTS),
        ]:
            if value not in known:
                raise UserError(f"{option} must be one of {', '.join(known)}, got {value!r}.")
        super().__init__(
            BLEU(
                tokenize=tokenize,
                lowercase=lowercase,
                smooth_method=smooth_method,
                smooth_value=smooth_value,
                max_ngram_order=max_ngram_order,
                effective_order=effective_order,
            ),
            statistics=2 + 2 * max_ngram_order,
        )


class ChrF(_Sacre):
    """Corpus chrF in 0 … 100 (Popović 2015, 2017): F-score of character (and word) n-grams.

        chrF = 100 (1 + beta²) P R / (beta² P + R)

    P and R the mean precision and recall over the orders. The defaults are chrF2; word_order=2
    gives chrF2++.

    Args:
        char_order: longest n-gram of characters.
        word_order: longest n-gram of words; 0 for none.
        beta: how many times more recall counts than precision.
        lowercase: score without regard to case.
        whitespace: count white space among the characters.
        eps_smoothing: mean of the orders' F-scores, smoothed as in chrF++.py, NLTK and Moses,
            instead of the F-score of the means over the orders that occur.

    Raises:
        UserError: when computed without a sample.
    """

    def __init__(
        self,
        *,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        eps_smoothing: bool = False,
    ) -> None:
        super().__init__(
            CHRF(
                char_order=char_order,
                word_order=word_order,
                beta=beta,
                lowercase=lowercase,
                whitespace=whitespace,
                eps_smoothing=eps_smoothing,
            ),
            statistics=3 * (char_order + word_order),
        )


class ExactMatch(_Samples):
    """Share, in 0 … 1, of hypotheses that equal their reference, white space at the ends aside.

    Raises:
        UserError: when computed without a sample.
    """

    def __init__(self) -> None:
        super().__init__(statistics=2)

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        index: Sequence[int] | Tensor,
    ) -> None:
        """Count a batch: b texts, b references, and the line number of each in the split [b]."""
        _check_pairs(hypotheses, references, index)
        if len(hypotheses) == 0:
            return
        pairs = zip(hypotheses, references, strict=True)
        equal = [hypothesis.strip() == reference.strip() for hypothesis, reference in pairs]
        self._add(index, [[match, 1] for match in equal])

    def compute(self) -> Tensor:
        matches, samples = self._sums()
        return torch.tensor(matches / samples, device=self.device)


class Share(Metric):
    """Share, in 0 … 1, of what is right: right / all.

    Raises:
        UserError: when computed of nothing.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    right: Tensor
    all: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("all", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, right: Tensor) -> None:
        """Count a batch: whether each of its answers is right, [n] bool."""
        self.right += right.sum()
        self.all += right.numel()

    def compute(self) -> Tensor:
        if self.all == 0:
            raise UserError(
                "Share needs at least one answer, got none; see whether the split is empty."
            )
        return torch.tensor(int(self.right) / int(self.all), device=self.device)


class TokenLoss(Metric):
    """Mean negative log-likelihood of a target token, in nats: sum nll / number of tokens.

    Raises:
        UserError: when computed without a token.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    nll: list[Tensor]
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The sum of every batch, since one running sum in float32 would lose digits.
        self.add_state("nll", default=[], dist_reduce_fx="cat")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, nll: Tensor, count: int | Tensor) -> None:
        """Add a batch: the sum of -log p over its target tokens [], and how many these are."""
        self.nll.append(nll.detach().float().reshape(1))
        self.count += count

    def compute(self) -> Tensor:
        return torch.tensor(self._mean(), device=self.device)

    def _mean(self) -> float:
        if self.count == 0:
            raise UserError(
                f"{type(self).__name__} needs at least one target token, got none; "
                "see whether the split is empty."
            )
        return float(dim_zero_cat(self.nll).cpu().double().sum()) / int(self.count)


class LossByPlace(Metric):
    """Negative log-likelihood of the targets at each place of a window, and their numbers.

    Args:
        places: of a window.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    nll: list[Tensor]
    count: Tensor

    def __init__(self, places: int) -> None:
        super().__init__()
        # The sum of every batch, as in TokenLoss.
        self.add_state("nll", default=[], dist_reduce_fx="cat")
        self.add_state("count", default=torch.zeros(places, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nll: Tensor, counted: Tensor) -> None:
        """Add a batch: -log p of targets [b t], zero where `counted` [b t] is False."""
        self.nll.append(nll.detach().float().sum(0, keepdim=True))
        self.count += counted.sum(0)

    def compute(self) -> Tensor:
        """Sums of -log p, in nats, and numbers of targets: [2 t] in float64."""
        return torch.stack([dim_zero_cat(self.nll).cpu().double().sum(0), self.count.cpu()])


class Perplexity(TokenLoss):
    """exp(sum nll / number of tokens): updated as TokenLoss is.

    Raises:
        UserError: when computed without a token.
    """

    def compute(self) -> Tensor:
        # As a tensor, since a diverged model's perplexity is infinite and no error.
        return torch.tensor(self._mean(), device=self.device).exp()


class BitsPerByte(TokenLoss):
    """sum nll / (ln 2 · bytes): the loss in a unit that is the same for every tokenizer.

    Updated as TokenLoss is, the count being that of the UTF-8 bytes that the target tokens spell.

    Raises:
        UserError: when computed without a byte.
    """

    def compute(self) -> Tensor:
        return torch.tensor(self._mean() / math.log(2), device=self.device)
