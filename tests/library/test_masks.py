"""`Mask` is rendered as its docstring says, for any part of it."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from attention_zoo import UserError
from attention_zoo.masks import Mask
from tests.conformance.definition import key_mask, packed, visible

CPU = torch.device("cpu")
# Of an attention that adds nothing, and puts no padding out of the way.
NO_ROLE = SimpleNamespace(role="cross", window=None, is_visible=lambda *_: True)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 20])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beside", ["nothing", "key_mask", "segment_ids", "query_segment_ids"])
def test_every_block_is_the_definition(window: int | None, causal: bool, beside: str) -> None:
    queries, keys = 6, 9
    segment_ids = packed([4, 2, 3], 2)
    own = {
        "nothing": {},
        "key_mask": {"key_mask": key_mask("interior", 2, keys)},
        "segment_ids": {"segment_ids": segment_ids},
        "query_segment_ids": {
            "segment_ids": segment_ids,
            "query_segment_ids": packed([1, 2, 3], 2),
        },
    }[beside]
    mask = Mask(causal=causal, window=window, **own)
    expected = visible(NO_ROLE, mask, 2, queries, keys)  # type: ignore[arg-type]
    shift = keys - queries
    for start, stop, first, last in product(range(shift, 9, 2), range(5, 10, 2), (0, 2), (5, 9)):
        if stop <= start:
            continue
        block = mask.dense(range(start, stop), range(first, last), device=CPU)
        theirs = expected[:, start - shift : stop - shift, first:last]
        ours = torch.ones_like(theirs) if block is None else block[:, 0].expand_as(theirs)
        assert torch.equal(ours, theirs)


def test_nothing_is_rendered_where_everything_is_visible() -> None:
    assert Mask().dense(range(4), range(4), device=CPU) is None
    assert Mask(causal=True).dense(range(3, 4), range(4), device=CPU) is None
    assert Mask(causal=True, window=4).dense(range(3, 4), range(4), device=CPU) is None
    assert Mask(causal=True, window=3).dense(range(3, 4), range(4), device=CPU) is not None


def test_names_are_the_fields_that_are_set() -> None:
    assert Mask().names == ()
    real = torch.ones(1, 2, dtype=torch.bool)
    assert Mask(causal=True, window=1, key_mask=real).names == ("causal", "window", "key_mask")


def test_narrowing_never_widens() -> None:
    assert Mask(window=3).intersect(window=5).window == 3
    assert Mask(window=5).intersect(window=3).window == 3
    assert Mask(causal=True).intersect().causal
    assert Mask().intersect(causal=True).causal


def test_masks_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="window must be at least 1"):
        Mask(window=0)
    with pytest.raises(UserError, match="query_segment_ids are compared with segment_ids"):
        Mask(query_segment_ids=torch.zeros(1, 2))
