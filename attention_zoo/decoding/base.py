"""What the decoding methods share.

Shapes: b batch, n rows being decoded, s source length, t target length, v vocabulary, d width.
"""

import functools
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo.caches import LayeredCache
from attention_zoo.errors import Unsupported, UserError, check_not_negative
from attention_zoo.factory import check_type, typed_options
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.precision import upcast
from attention_zoo.tensor_checks import check_integers, check_key_mask

LARGEST_LIMIT = 1_000_000  # of an output's length

log_once = functools.cache(logging.getLogger(__name__).info)


class Hypothesis(NamedTuple):
    """One output: its tokens, without bos and eos, and its score."""

    tokens: list[int]
    score: float


def check_model(model: nn.Module, *, encodes: bool) -> None:
    """Refuse a model of the other kind, or in training mode, where dropout changes the outputs.

    `encodes` says whether the model has to read a source.
    """
    if not isinstance(model, nn.Module) or hasattr(model, "encode") != encodes:
        needed = "Seq2Seq" if encodes else "LanguageModel"
        raise UserError(
            f"this decoding needs a model such as {needed}, got {type(model).__name__}; Greedy and "
            "Beam are for translations, Sample is for language models."
        )
    if model.training:
        raise UserError(
            "decoding needs a model in evaluation mode, got one in training mode; "
            "call model.eval() first."
        )


def check_finite(best: Tensor, step: int) -> None:
    """Refuse log-probabilities of the best tokens [n] that are NaN or infinite."""
    if not torch.isfinite(best).all():
        raise UserError(
            f"the model's logits must be finite, but at step {step} they hold NaN or infinity; "
            "see whether the training diverged (its loss), or decode in float32."
        )


def check_special_ids(*, eos_id: int, pad_id: int, **others: int) -> None:
    """Refuse special ids that are no tokens, and an eos that may not be written, as pad may not."""
    for name, value in {"eos_id": eos_id, "pad_id": pad_id, **others}.items():
        check_type(name, value, int)
        check_not_negative(**{name: value})
    if eos_id == pad_id:
        raise UserError(f"eos_id must differ from pad_id, which is never written; got {pad_id}.")


def check_vocabulary(vocabulary: int, **special_ids: int) -> None:
    """Refuse special ids for which the model has no logits."""
    for name, value in special_ids.items():
        if value >= vocabulary:
            raise UserError(f"{name} must be from 0 to {vocabulary - 1}, got {value}.")


def create_cache(model: LanguageModel | Seq2Seq) -> LayeredCache | None:
    """Return a new cache of the model, or None where the model refuses.

    Without a cache the model reads the whole prefix again for every token.
    """
    try:
        return model.new_cache()
    except Unsupported as refusal:
        log_once("Decoding without a cache, to the same result but slower: %s", str(refusal))
        return None


@dataclass(eq=False)
class IncrementalDecoder:
    """A translation model that encodes its sources and scores next tokens."""

    model: Seq2Seq
    source: Tensor  # [b s]
    source_mask: Tensor  # [b s], True at real tokens
    limits: Tensor  # [b], the most tokens of each output, eos not counted
    bos_id: int
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        self.memory = self.model.encode(self.source, self.source_mask)
        self.cache = create_cache(self.model)

    def __call__(self, target: Tensor) -> Tensor:
        """Return log p(next token) [n v] after the targets so far [n t], bos first.

        A source may have several targets, which are neighbours: n is a multiple of b. Tokens that
        may not follow have -inf: always pad and bos, and in a row at its length limit everything
        except eos.
        """
        new = target if self.cache is None else target[:, self.cache.length :]
        logits = self.model.decode(new, self.memory, self.source_mask, cache=self.cache)[:, -1]
        ids = {"bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}
        check_vocabulary(logits.shape[1], **ids)
        # In half precision the sums of log-probabilities would be wrong.
        scores = torch.log_softmax(upcast(logits), -1)
        scores[:, [self.bos_id, self.pad_id]] = -torch.inf
        limits = self.limits.repeat_interleave(len(target) // len(self.limits))
        must_end = (limits < target.shape[1])[:, None]  # bos is not counted
        is_eos = torch.arange(scores.shape[1], device=scores.device) == self.eos_id
        return scores.masked_fill_(must_end & ~is_eos, -torch.inf)

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows [n], in this order, as many for each of the same sources."""
        if self.cache is not None:
            self.cache.reorder_targets(rows)

    def select(self, sources: Tensor) -> None:
        """Continue with these sources [m] alone; `reorder` is for their rows."""
        self.memory, self.source_mask = self.memory[sources], self.source_mask[sources]
        self.limits = self.limits[sources]
        if self.cache is not None:
            self.cache.reorder_contexts(sources)


class Search(ABC):
    """A search for likely translations. Subclasses implement `search`.

    Args:
        max_ratio: an output has at most max_ratio * source tokens + max_extra tokens, and no more
            than fit into the model's `max_length`; an output that reaches its limit ends there.
        max_extra: see max_ratio; in tokens. Both are at most 1,000,000.

    Raises:
        UserError: the limits leave no room, the model is in training mode or gives NaN logits, or
            an argument has another type.
    """

    @typed_options
    def __init__(self, *, max_ratio: float = 2.0, max_extra: int = 50) -> None:
        if max_ratio < 0 or max_extra < 0 or max_ratio + max_extra == 0:
            raise UserError(
                "max_ratio and max_extra must not be negative, nor both 0: an output has at most "
                f"max_ratio * source tokens + max_extra tokens; got {max_ratio=}, {max_extra=}."
            )
        if max(max_ratio, max_extra) > LARGEST_LIMIT:
            raise UserError(
                f"max_ratio and max_extra must be at most {LARGEST_LIMIT:,}, got {max_ratio=}, "
                f"{max_extra=}."
            )
        self.max_ratio = max_ratio
        self.max_extra = max_extra

    @torch.inference_mode()
    def __call__(
        self,
        model: Seq2Seq,
        source: Tensor,
        source_mask: Tensor,
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
    ) -> list[list[Hypothesis]]:
        """Translate a batch; each sentence has the outputs that it would have alone.

        Args:
            model: the model, in evaluation mode.
            source: token ids [b s].
            source_mask: [b s], True at real tokens.
            bos_id: the token that begins a target.
            eos_id: the token that ends it.
            pad_id: the token that fills up rows.

        Returns:
            For each sentence its hypotheses, best first.
        """
        check_model(model, encodes=True)
        check_special_ids(bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
        if bos_id == eos_id:
            raise UserError(
                f"eos_id must differ from bos_id, which is never written; got {eos_id}."
            )
        check_integers(source, "source", "[b s]")
        check_key_mask(source_mask, "source_mask")
        limits = (source_mask.sum(1) * self.max_ratio).long() + self.max_extra
        if model.max_length is not None:
            limits = limits.clamp(max=model.max_length - 1)  # bos has a position too
        return self.search(
            IncrementalDecoder(model, source, source_mask, limits, bos_id, eos_id, pad_id)
        )

    @abstractmethod
    def search(self, decoder: IncrementalDecoder) -> list[list[Hypothesis]]:
        """Return the hypotheses for each source of the decoder, best first."""
