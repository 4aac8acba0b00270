"""What the searches share: a model that is asked for one token at a time.

Shapes: b batch, n rows being decoded, s source length, t target length, v vocabulary, d width.
"""

import functools
import logging
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from attention_zoo.errors import Unsupported, UserError

log = logging.getLogger(__name__)


class Hypothesis(NamedTuple):
    """One output: its tokens, without bos and eos, and the score that the search gave it."""

    tokens: list[int]
    score: float


class Cache(Protocol):
    """What a model remembers of the tokens it has read."""

    length: int

    def reorder(self, index: Tensor) -> None: ...


class TranslationModel(Protocol):
    """What a search needs of a sequence-to-sequence model."""

    training: bool

    def encode(self, source: Tensor, key_mask: Tensor) -> Tensor: ...

    def decode(
        self, target: Tensor, memory: Tensor, key_mask: Tensor, *, cache: Any = None
    ) -> Tensor: ...

    def new_cache(self) -> Any: ...


def check_mode(model: Any) -> None:
    """Refuse a model in training mode: dropout would change its words from call to call."""
    if model.training:
        raise UserError(
            "decoding needs a model in evaluation mode, this one is in training mode; "
            "call model.eval() first."
        )


def check_finite(best: Tensor, step: int) -> None:
    """Refuse log-probabilities of the best tokens [n] that are NaN or infinite."""
    if not torch.isfinite(best).all():
        raise UserError(
            f"the model's logits must be finite, but at step {step} they hold NaN or infinity; "
            "see whether the training diverged (its loss), or decode in float32."
        )


@functools.cache
def _log_once(reason: str) -> None:
    log.info("Decoding without a cache, to the same result but slower: %s", reason)


def open_cache(model: Any) -> Cache | None:
    """A new cache of the model; None where it refuses, and then the whole prefix is read again
    for every token.
    """
    try:
        return model.new_cache()
    except Unsupported as refusal:
        _log_once(str(refusal))
        return None


def check_length(max_ratio: float, max_extra: int) -> None:
    """Refuse length limits that leave no room for a token."""
    if max_ratio < 0 or max_extra < 0 or max_ratio + max_extra == 0:
        raise UserError(
            "max_ratio and max_extra must not be negative, nor both 0: an output has at most "
            f"max_ratio * source tokens + max_extra tokens; got {max_ratio=}, {max_extra=}."
        )


class Stepper:
    """A translation model that has read its sources and now says one token after another.

    Calling it with the targets so far [n t], bos first, gives log p(next token) [n v], with -inf
    for what must not be said: pad and bos always, and everything but eos in a row that is as long
    as it may be: floor(max_ratio * source tokens) + max_extra tokens, eos not counted (and bos and
    the tokens fit into the model's `max_length`, where it has one).
    """

    def __init__(
        self,
        model: TranslationModel,
        source: Tensor,
        key_mask: Tensor,
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        max_ratio: float,
        max_extra: int,
    ) -> None:
        check_mode(model)
        self.model = model
        self.eos_id = eos_id
        self.never = [bos_id, pad_id]
        self.key_mask = key_mask
        self.memory = model.encode(source, key_mask)
        self.cache = open_cache(model)
        limits = (key_mask.sum(1) * max_ratio).long() + max_extra
        max_length = getattr(model, "max_length", None)
        self.limits = limits if max_length is None else limits.clamp(max=max_length - 1)

    def __call__(self, target: Tensor) -> Tensor:
        new = target if self.cache is None else target[:, self.cache.length :]
        logits = self.model.decode(new, self.memory, self.key_mask, cache=self.cache)[:, -1]
        # Half precision would add up to wrong scores.
        wide = torch.promote_types(logits.dtype, torch.float32)
        scores = torch.log_softmax(logits, -1, dtype=wide)
        scores[:, self.never] = -torch.inf
        said = target.shape[1] - 1
        may_end_only = (self.limits <= said)[:, None]
        is_eos = torch.arange(scores.shape[1], device=scores.device) == self.eos_id
        return scores.masked_fill_(may_end_only & ~is_eos, -torch.inf)

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows [n], each of which has the same source as the row in its place."""
        if self.cache is not None:
            self.cache.reorder(rows)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows [m], in this order; a row may be taken several times."""
        self.memory, self.key_mask = self.memory[rows], self.key_mask[rows]
        self.limits = self.limits[rows]
        self.reorder(rows)
