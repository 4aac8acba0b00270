"""What is in the page, before a browser shows it."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from attention_zoo.attention.dense.multi_head import MultiHeadAttention
from attention_zoo.errors import UserError
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.attention_viewer.page import (
    AttentionView,
    attention_page,
    encode_weights,
    notebook_frame,
)


def make_record(tokens: int = 4, heads: int = 2, layers: int = 1) -> AttentionRecord:
    names = [f"w{index}" for index in range(tokens)]
    attention = MultiHeadAttention(dim=8 * heads, heads=heads, role="global")
    maps = [attention.attention_map(torch.randn(1, tokens, 8 * heads))[0] for _ in range(layers)]
    return AttentionRecord(names, names, {"encoder": maps, "decoder": maps, "cross": maps})


@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-6, 1e6, 0.0])
def test_weights_come_back_within_half_a_step(scale: float) -> None:
    weights = torch.rand(2, 3, 5) * scale
    encoded = encode_weights(weights)
    numbers = np.frombuffer(base64.b64decode(encoded["weights"]), "<i2").reshape(2, 3, 5)
    back = torch.tensor(numbers * encoded["step"])
    assert encoded["heads"] == 2 and encoded["step"] > 0
    assert (back - weights).abs().max() <= 0.51 * weights.abs().max() / 32767


def test_a_page_of_thirty_tokens_is_small() -> None:
    # Three roles, two layers, four heads: as the demo's model.
    record = make_record(30, 4, 2)
    weights = 3 * 2 * 4 * 30 * 30
    empty = len(attention_page([make_record(1, 4, 2)]))
    assert len(attention_page([record])) - empty < 2.8 * weights
    assert len(attention_page([record])) < 110_000


def test_a_decoder_attends_to_what_it_has_read() -> None:
    record = make_record(3)._replace(decoder_input_tokens=["<bos>", "w0", "w1"])
    assert record.tokens("decoder") == (["<bos>", "w0", "w1"], ["<bos>", "w0", "w1"])
    names = ["w0", "w1", "w2"]
    assert record.tokens("cross") == record.tokens("encoder") == (names, names)
    assert make_record(3).tokens("decoder") == (names, names)


def test_a_map_that_does_not_fit_its_tokens_is_refused() -> None:
    record = make_record(3)
    with pytest.raises(ValueError, match=r"encoder map .* \[heads 2 2\].*\[2, 3, 3\]"):
        attention_page([record._replace(source_tokens=["a", "b"])])


def test_weights_that_are_not_finite_are_refused() -> None:
    record = make_record(3)
    record.maps["cross"] = [torch.full((2, 3, 3), torch.nan)]
    with pytest.raises(UserError, match="layer 0 of the cross"):
        attention_page([record])


def test_a_notebook_shows_it_in_a_frame() -> None:
    record = AttentionView(*make_record(3))
    shown = record._repr_html_()
    assert shown == notebook_frame(record) and shown.startswith("<iframe") and shown.count("<") == 2


def test_no_token_ends_the_data() -> None:
    record = make_record(3)._replace(
        source_tokens=["</script>", "<!--", "&lt;"], source="</script>"
    )
    text = attention_page([record])
    assert text.count("</script>") == 2
    data = re.search(r'id="records">(.*?)</script>', text)
    assert data and json.loads(data[1])[0]["source"] == "</script>"
