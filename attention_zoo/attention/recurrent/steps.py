"""What a recurrence works on: what each token does to the state, in chunks of tokens."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.masks import TokenSpan

CHUNK_LENGTH = 32  # tokens computed in parallel between two updates of the state
SINGLE_CHUNK_LENGTH = 64  # of a sequence that is one chunk: then it reads no state


class Steps(NamedTuple):
    """What each token does to the state S [b h c e], and how it reads it.

        S_t = (I − w_t e_tᵀ) Diag(exp g_t) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t

    The state decays first; what e_t then reads is erased along w_t. If `write` is None, w is k:

        S_t = S' + k_t (v_t − S'ᵀ e_t)ᵀ,   S' = Diag(exp g_t) S_{t−1}.

    If `erase` is None, nothing is erased. DeltaNet's k is β k̂, and its e is k̂, with a unit vector
    k̂; kernels need β as well. A state with a sign decays by its sign times exp g.
    """

    q: Tensor  # [b h t c]
    k: Tensor  # [b h t c]
    v: Tensor  # [b h t e]
    erase: Tensor | None = None  # e, [b h t c]
    write: Tensor | None = None  # w, [b h t c]
    decay: Tensor | None = None  # g, log, [b|1 h|1 t c|1], at most 0; −inf forgets everything
    rate: Tensor | None = None  # β, [b h t 1], where k is β e and there is no other w
    sign: Tensor | None = None  # of a decay that may be negative, 1 or −1, [b h t c|1]

    def apply_mask(self, span: TokenSpan) -> "Steps":
        """Return steps that skip padded tokens, and start from an empty state in each segment."""
        _, k, _, _, write, decay, rate, sign = self
        if span.key_mask is not None:
            padded = ~span.key_mask[:, None, :, None]
            k = k.masked_fill(padded, 0.0)
            write, decay, rate = (
                None if part is None else part.masked_fill(padded, 0.0)
                for part in (write, decay, rate)
            )
            sign = None if sign is None else sign.masked_fill(padded, 1.0)
        starts = span.segment_starts
        if starts is not None:
            decay = k.new_zeros(len(k), 1, k.shape[2], 1) if decay is None else decay
            decay = decay.masked_fill(starts[:, None, :, None], float("-inf"))
        return self._replace(k=k, write=write, decay=decay, rate=rate, sign=sign)

    def use_unit_values(self) -> "Steps":
        """Return steps with unit vectors as values, so that tokens read weights [b h t t]."""
        length = self.q.shape[2]
        values = torch.eye(length, dtype=self.q.dtype, device=self.q.device)
        return self._replace(v=values.expand(*self.q.shape[:2], -1, -1))

    def split_chunks(self, *, power_of_two: bool = False) -> "Steps":
        """Split all parts into chunks [b h n s c], padded at the end with steps that do nothing.

        A short sequence is one chunk. If `power_of_two`, or if each channel has
        a decay of its own, the size of a chunk is a power of two.
        """
        assert self.sign is None, "run_signed comes first"
        length, size = self.q.shape[2], CHUNK_LENGTH
        if power_of_two or (self.decay is not None and self.decay.shape[-1] > 1):
            size = chunk_length(length)
        elif length <= SINGLE_CHUNK_LENGTH:
            return Steps._make(None if part is None else part[:, :, None] for part in self)
        return Steps._make(
            None if part is None else pad(part, (0, 0, 0, -length % size)).unflatten(2, (-1, size))
            for part in self
        )


def chunk_length(length: int) -> int:
    """Return the power of two that splits so many tokens into chunks."""
    size = 1
    while size < min(length, CHUNK_LENGTH):
        size *= 2
    return size


def sum_after(decay: Tensor) -> Tensor:
    """Sum decays [… t c] over the tokens after each token."""
    return pad(decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(dim=-2).flip(-2)
