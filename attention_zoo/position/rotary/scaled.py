"""Rotary positions for sequences longer than in training: the base of all rescalings."""

from itertools import pairwise
from typing import Any

from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.partial_rotary import PartialRotaryEncoding
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.tensor_checks import is_readable


class ScaledRotary(PartialRotaryEncoding):
    """Rotary positions that reach `factor` times as far.

    They have no parameters, so a model that was trained with `rotary`, or with a fraction below 1
    with `partial_rotary`, can be run, or trained further, with them.

    Args:
        fraction: of a head's channels that are rotated, as in `partial_rotary`: c in the formulas
            is their number.
        factor: by which the length of sequences grows.
    """

    def __init__(self, *, fraction: float = 1.0, factor: float = 4.0, **options: Any) -> None:
        super().__init__(fraction=fraction, **options)
        if factor < 1.0:
            raise UserError(
                f"factor must be at least 1, got {factor}: it is the length to reach, divided by "
                "the length in training."
            )
        self.factor = factor

    @property
    def width(self) -> int:
        # All channels of an odd head are not rounded to fewer, but refused.
        return super().width if self.fraction < 1.0 else self.head_dim

    def naive_rebased_frequencies(self, factor: float) -> list[float]:
        """Return the frequencies of the base times factor^(c/(c−2))."""
        pairs = len(super().naive_frequencies(0))
        rebased = self.base * factor ** (pairs / max(pairs - 1, 0.5))
        return [rebased ** (-i / pairs) for i in range(pairs)]

    def stretch(self, x: Tensor, factor: float | Tensor) -> Tensor:
        """Return factor^(2i/(c−2)) of every pair, [… c/2]: from 1 for the fastest to the factor.

        Frequencies divided by it are those of the base times factor^(c/(c−2)).
        """
        # A single pair is the fastest.
        return factor ** (self.exponents(x) * (self.width / max(self.width - 2, 1)))


class OriginalLengthScaledRotary(ScaledRotary):
    """A rescaling that depends on the length of sequences in training.

    Args:
        original_length: that length, in tokens.
    """

    def __init__(self, *, original_length: int | None = 512, **options: Any) -> None:
        super().__init__(**options)
        self.original_length = check_original_length(self, original_length)


class GrowingRotary(OriginalLengthScaledRotary):
    """A rescaling that depends on n, the length so far: keys are rotated anew as it changes.

    The query at position t has n = t + 1, as in decoding token by token. So one pass over a
    sequence equals decoding, and no query sees how long the sequence will become.
    """

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return q and k: a cache keeps keys that are not rotated, for `rotate_by_length`."""
        return q, k

    def length_spans(self, q_positions: Tensor) -> list[slice]:
        count = q_positions.shape[1]
        if not is_readable(q_positions) or not count:
            # Values of positions cannot be inspected: each query is a span of its own.
            starts = list(range(count))
        else:
            stages = self.stage(q_positions + 1)
            changes = (stages[:, 1:] != stages[:, :-1]).any(dim=0)
            starts = [0, *(changes.nonzero()[:, 0] + 1).tolist()]
        return [slice(*ends) for ends in pairwise([*starts, count])]

    def rotate_by_length(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not q_positions.numel():
            return q, k
        stage = self.stage(q_positions[:, -1:] + 1)
        frequencies = self.frequencies_at(stage[:, :, None, None], q)
        return (
            self.rotate_pairs(q, *self.waves(q_positions, frequencies)),
            self.rotate_pairs(k, *self.waves(k_positions, frequencies)),
        )

    def stage(self, lengths: Tensor) -> Tensor:
        """Return the value on which the frequencies depend, for each length n [b|1 q]."""
        raise NotImplementedError

    def frequencies_at(self, stage: Tensor, x: Tensor) -> Tensor:
        """Return the frequencies [b|1 1 1 c/2] of each row, for its stage [b|1 1 1 1]."""
        raise NotImplementedError


def check_original_length(encoding: RotaryEncoding, original_length: int | None) -> int:
    """Return the length in training, in tokens, if it is given and long enough."""
    if original_length is None:
        raise UserError(
            f"position={encoding.card.name} needs original_length: the length in tokens that the "
            "model was trained at."
        )
    if original_length < 2:
        raise UserError(f"original_length must be at least 2 tokens, got {original_length}.")
    return original_length
