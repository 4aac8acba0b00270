"""Who sees whom, by the words of `Mask`, in plain loops: the library's own rendering is unused."""

from itertools import product

import torch
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask


def visible(attention: Attention, mask: Mask, batch: int, queries: int, keys: int) -> Tensor:
    """[b q k] bool: the mask, with what the role and the entry's own pattern add to it."""
    causal = mask.causal or attention.role == "causal"
    windows = [window for window in (mask.window, attention.window) if window is not None]
    counts = attention.role != "cross" and (attention.counts_columns or windows)
    result = torch.zeros(batch, queries, keys, dtype=torch.bool)
    for b, query in product(range(batch), range(queries)):
        place = keys - queries + query
        own = sequence(mask, b, query, place, keys)
        if counts and place not in own:
            continue  # Padding, which has no number among the real tokens.
        for number, key in enumerate(own):
            # A window and a pattern count real tokens; a mask by itself counts columns.
            i, j = (own.index(place), number) if counts else (place, key)
            sees = not (causal and key > place)
            sees &= bool(attention.is_visible(i, j, len(own)))
            for window in windows:
                if causal:
                    sees &= i - window < j <= i
                else:
                    sees &= i - window // 2 <= j <= i + (window - 1) // 2
            result[b, query, key] = sees
    return result


def sequence(mask: Mask, b: int, query: int, place: int, keys: int) -> list[int]:
    """The real keys of the sequence that a query belongs to."""
    own = list(range(keys))
    if mask.key_mask is not None:
        real = mask.key_mask[b].tolist()
        own = [key for key in own if real[key]]
    if mask.segment_ids is not None:
        numbers = mask.segment_ids[b].tolist()
        if mask.query_segment_ids is None:
            number = numbers[place]
        else:
            number = int(mask.query_segment_ids[b, query])
        own = [key for key in own if numbers[key] == number]
    return own


def key_mask(side: str, batch: int, length: int) -> Tensor:
    """[b k] bool: the first row is whole, the others have a third of their keys padded."""
    result = torch.ones(batch, length, dtype=torch.bool)
    third = -(-length // 3)
    start = {"left": 0, "interior": third, "right": length - third}[side]
    result[1:, start : start + third] = False
    return result


def packed(lengths: list[int], batch: int) -> Tensor:
    """[b t]: segment numbers of sequences of these lengths, in turned order from row to row."""
    rows = [lengths[i % len(lengths) :] + lengths[: i % len(lengths)] for i in range(batch)]
    return torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in rows]
    )
