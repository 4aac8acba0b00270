"""Sequences packed into a row come out as they do apart."""

import torch

from attention_zoo.masks import Mask
from tests.conformance.cases import Case, over_values, positioned_cases
from tests.conformance.definition import packed
from tests.conformance.numbers import assert_same


@over_values(
    "lengths", [[40, 30, 2], [3, 1, 5]], (case for case in positioned_cases() if case.packs)
)
def test_packed_is_separate(case: Case, lengths: list[int]) -> None:
    attention = case.attention()
    keys = packed(lengths, 2)
    length = keys.shape[1]
    if case.role == "cross":
        # As many queries as fit in each, so that queries and keys have positions of their own.
        queries = packed([2] * len(lengths), 2)
        x, context = case.inputs(queries.shape[1], length)
        # Rows turn the order of the lengths, so a segment's number is its place in the row.
        together = attention(x, context, mask=Mask(segment_ids=keys, query_segment_ids=queries))
        for row, segment in torch.cartesian_prod(torch.arange(2), torch.arange(len(lengths))):
            own, other = queries[row] == segment, keys[row] == segment
            alone = attention(x[row, own][None], context[row, other][None])
            assert_same(together[row, own], alone[0])
        return
    (x,) = case.inputs(length)
    starts = torch.stack([torch.cat([torch.arange(n) for n in row.bincount()]) for row in keys])
    together = attention(x, mask=Mask(segment_ids=keys), positions=starts)
    for row, segment in torch.cartesian_prod(torch.arange(2), torch.arange(len(lengths))):
        own = keys[row] == segment
        assert_same(together[row, own], attention(x[row, own][None])[0])
