"""What the decoding methods share.

Shapes: b batch, n rows being decoded, s source length, t target length, v vocabulary, d width.
"""

import functools
import logging
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from attention_zoo.errors import Unsupported, UserError

log = logging.getLogger(__name__)


class Hypothesis(NamedTuple):
    """One output: its tokens, without bos and eos, and its score."""

    tokens: list[int]
    score: float


class Cache(Protocol):
    """The interface of a cache that decoding uses."""

    length: int

    def reorder(self, index: Tensor) -> None:
        """Continue with these rows [n], in this order."""


class TranslationModel(Protocol):
    """The interface of a sequence-to-sequence model that decoding uses."""

    training: bool

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """Return the memory [b s d] of source tokens [b s]; the mask is True at real tokens."""

    def decode(
        self, target: Tensor, memory: Tensor, source_mask: Tensor, *, cache: Any = None
    ) -> Tensor:
        """Return logits [n t v] of the tokens after each of `target` [n t]."""

    def new_cache(self) -> Any:
        """Return an empty cache, or raise Unsupported."""


def check_eval_mode(model: Any) -> None:
    """Refuse a model in training mode: dropout would change its outputs from call to call."""
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


def create_cache(model: Any) -> Cache | None:
    """Return a new cache of the model, or None where the model refuses.

    Without a cache the model reads the whole prefix again for every token.
    """
    try:
        return model.new_cache()
    except Unsupported as refusal:
        _log_once(str(refusal))
        return None


@functools.cache
def _log_once(reason: str) -> None:
    log.info("Decoding without a cache, to the same result but slower: %s", reason)


class IncrementalDecoder:
    """A translation model that has encoded its sources and scores next tokens.

    A row ends at its length limit: floor(max_ratio * source tokens) + max_extra tokens, eos not
    counted. Where the model has a `max_length`, bos and the tokens fit into that too.
    """

    def __init__(
        self,
        model: TranslationModel,
        source: Tensor,
        source_mask: Tensor,
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        max_ratio: float,
        max_extra: int,
    ) -> None:
        check_eval_mode(model)
        self.model = model
        self.source = source
        self.source_mask = source_mask
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.memory = model.encode(source, source_mask)
        self.cache = create_cache(model)
        limits = (source_mask.sum(1) * max_ratio).long() + max_extra
        max_length = getattr(model, "max_length", None)
        self.limits = limits if max_length is None else limits.clamp(max=max_length - 1)

    def __call__(self, target: Tensor) -> Tensor:
        """Return log p(next token) [n v] after the targets so far [n t], bos first.

        Tokens that may not follow have -inf: always pad and bos, and in a row at its length limit
        everything except eos.
        """
        new = target if self.cache is None else target[:, self.cache.length :]
        logits = self.model.decode(new, self.memory, self.source_mask, cache=self.cache)[:, -1]
        # In half precision the sums of log-probabilities would be wrong.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scores = torch.log_softmax(logits, -1, dtype=dtype)
        scores[:, [self.bos_id, self.pad_id]] = -torch.inf
        generated = target.shape[1] - 1
        must_end = (self.limits <= generated)[:, None]
        is_eos = torch.arange(scores.shape[1], device=scores.device) == self.eos_id
        return scores.masked_fill_(must_end & ~is_eos, -torch.inf)

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows [n]; each has the same source as the row that it replaces."""
        if self.cache is not None:
            self.cache.reorder(rows)

    def select(self, rows: Tensor) -> None:
        """Continue with these rows [m], in this order; a row may be taken several times."""
        self.memory, self.source_mask = self.memory[rows], self.source_mask[rows]
        self.limits = self.limits[rows]
        self.reorder(rows)


class Search(ABC):
    """A search for likely translations. Subclasses implement `search`.

    Args:
        max_ratio: an output has at most max_ratio * source tokens + max_extra tokens, and no more
            than fit into the model's `max_length`; an output that reaches its limit ends there.
        max_extra: see max_ratio; in tokens.

    Raises:
        UserError: the limits leave no room, the model is in training mode or gives NaN logits.
    """

    def __init__(self, *, max_ratio: float, max_extra: int) -> None:
        if max_ratio < 0 or max_extra < 0 or max_ratio + max_extra == 0:
            raise UserError(
                "max_ratio and max_extra must not be negative, nor both 0: an output has at most "
                f"max_ratio * source tokens + max_extra tokens; got {max_ratio=}, {max_extra=}."
            )
        self.max_ratio = max_ratio
        self.max_extra = max_extra

    @torch.inference_mode()
    def __call__(
        self,
        model: TranslationModel,
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
        decoder = IncrementalDecoder(
            model,
            source,
            source_mask,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            max_ratio=self.max_ratio,
            max_extra=self.max_extra,
        )
        return self.search(decoder)

    @abstractmethod
    def search(self, decoder: IncrementalDecoder) -> list[list[Hypothesis]]:
        """Return the hypotheses for each source of the decoder, best first."""
