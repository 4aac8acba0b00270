"""Sizes that a model cannot have are refused in one line that names them."""

from functools import partial
from itertools import product
from typing import Any

import pytest

from attention_zoo import UserError, create_attention, create_position
from attention_zoo.models import LanguageModel, Seq2Seq

ROLES = {
    LanguageModel: ("attention",),
    Seq2Seq: ("encoder_attention", "decoder_attention", "cross_attention"),
}


def build(kind: type, *, heads: Any = 2, **changes: Any) -> None:
    factory = partial(create_attention, "multi_head", heads=heads)
    sizes = {"vocabulary_size": 9, "dim": 8, "ffn_dim": 8, "layers": 1}
    if kind is Seq2Seq:
        sizes["pad_id"] = 0
    position = partial(create_position, "rotary")
    kind(**dict.fromkeys(ROLES[kind], factory), position=position, **sizes | changes)


SIZES = ["vocabulary_size", "dim", "ffn_dim", "layers", "heads"]
VALUES = [0, -1, 2.5, "four", None, True, ["linear", "multi_head"]]
# A model may lack feed-forwards.
ILLEGAL = [pair for pair in product(SIZES, VALUES) if pair != ("ffn_dim", None)]


@pytest.mark.parametrize("size, value", ILLEGAL)
@pytest.mark.parametrize("kind", ROLES)
def test_a_size_that_counts_nothing_is_refused(kind: type, size: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{size} must be .*, got ") as refusal:
        build(kind, **{size: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), "0.1", None, True])
def test_a_dropout_that_is_no_probability_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="dropout must be"):
        build(LanguageModel, dropout=value)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"multiple of heads, got dim=8, heads=3\."):
        build(LanguageModel, heads=3)
