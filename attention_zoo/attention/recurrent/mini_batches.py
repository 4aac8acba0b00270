"""Mini-batches of tokens, which count the real tokens of each segment."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn.functional import pad

from attention_zoo.masks import TokenSpan, gather_broadcast
from attention_zoo.tensor_checks import is_readable

States = tuple[Tensor, ...]
Parts = dict[str, Tensor]
StepResult = tuple[States, States]  # the states to go on from, and the outputs


class MiniBatches(NamedTuple):
    """Where the tokens of a span stand in n mini-batches of m places.

    Padding has no place, and every segment begins a mini-batch. So a mini-batch may have empty
    places: the first, those of tokens before the span; and the last of a segment, those that no
    token has taken yet.
    """

    size: int  # m
    places: Tensor  # [b|1 t], of each token, counted over all mini-batches; n·m for padding
    tokens: Tensor  # [b|1 n·m], the token at each place; t for none
    num_open: Tensor  # [b|1], how many tokens the last mini-batch has; 0 if it has all
    starts: Tensor | None  # [b|1 n] bool, whether a segment of the span starts with a mini-batch
    forgets: Tensor | None  # [b|1] bool, whether the last segment starts here, without real tokens

    def split(self, x: Tensor) -> Tensor:
        """Split tokens [b h t f] into mini-batches [n b h m f], with zeros at empty places."""
        x = gather_broadcast(pad(x, (0, 0, 0, 1)), self.tokens[:, None, :, None], 2)
        return x.unflatten(2, (-1, self.size)).movedim(2, 0)

    def join(self, x: Tensor) -> Tensor:
        """Join mini-batches [n b h m f] to tokens [b h t f], with zeros at padding."""
        x = pad(x.movedim(0, 2).flatten(2, 3), (0, 0, 0, 1))
        return gather_broadcast(x, self.places[:, None, :, None], 2)

    def find_taken(self) -> Tensor:
        """Return [n b|1 m] bool, whether a place has a token."""
        taken = self.tokens < self.places.shape[1]
        return taken.unflatten(1, (-1, self.size)).movedim(1, 0)


def find_mini_batches(
    span: TokenSpan, length: int, size: int, count: Tensor | None, device: torch.device
) -> MiniBatches:
    """Find the mini-batches of `size` tokens in a span of some length.

    Args:
        span: the tokens.
        length: their number t, at least 1.
        size: number of tokens of a mini-batch.
        count: [b], how many tokens before the span the first mini-batch has; None at the start.
        device: of the tokens.
    """
    real, segment_starts = span.key_mask, span.segment_starts
    real = torch.ones(1, length, dtype=torch.bool, device=device) if real is None else real
    before = torch.zeros_like(real, dtype=torch.long) if count is None else count[:, None]
    counts = real.cumsum(dim=1)
    number = (length + size - 1 + (0 if count is None else size - 1)) // size
    ranks, is_new, forgets = counts - 1 + before, None, None
    if segment_starts is not None:
        counts_before = counts - real.long()
        is_new = segment_starts.cumsum(dim=1) > 0
        in_segment = counts - torch.where(segment_starts, counts_before, 0).cummax(dim=1).values
        ranks = in_segment - 1 + before.masked_fill(is_new, 0)
        forgets = is_new[:, -1] & (in_segment[:, -1] == 0)
    begins = real & (ranks % size == 0)
    batches = begins.cumsum(dim=1) - 1 + (before[:, :1] > 0).long()
    if segment_starts is not None:
        # Where values cannot be read, each token may be a segment, and begin a mini-batch.
        number = int(batches.max()) + 1 if is_readable(batches) else length + 1
        number = max(number, 1)
    none = number * size
    places = torch.where(real, batches * size + ranks % size, none)
    columns = torch.arange(length, device=device).expand_as(places)
    tokens = torch.full_like(places[:, :1], length).expand(-1, none + 1)
    tokens = tokens.scatter(1, places, columns)[:, :-1]
    starts = None
    if is_new is not None:
        starts_segment = pad(begins & (ranks == 0) & is_new, (0, 1)).expand(len(tokens), -1)
        starts = starts_segment.gather(1, tokens[:, ::size])
    return MiniBatches(size, places, tokens, (ranks[:, -1] + 1) % size, starts, forgets)


def run_mini_batches(
    step: Callable[[States, Parts], StepResult], states: States, parts: Parts
) -> tuple[States, States]:
    """Run steps over parts [n …]; return the last states, and the outputs of all steps [n …].

    When it is compiled, the loop is an operator of its own, so that any length has the same graph.
    """
    if torch.compiler.is_compiling():
        return scan(step, states, parts)
    results = []
    for values in zip(*(part.unbind(0) for part in parts.values()), strict=True):
        states, outputs = step(states, dict(zip(parts, values, strict=True)))
        results.append(outputs)
    return states, tuple(torch.stack(part) for part in zip(*results, strict=True))
