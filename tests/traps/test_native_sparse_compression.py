"""Traps of native sparse attention whose blocks of keys are compressed by a network."""

import pytest
import torch
from torch import Tensor

from attention_zoo import UserError
from attention_zoo.attention.selected.native_sparse import NativeSparseAttention
from attention_zoo.masks import Mask
from tests.conformance.definition import key_mask, packed, visible
from tests.conformance.numbers import assert_same, values_and_gradients
from tests.conformance.test_caches import decode
from tests.traps.dense import DIM, built

BLOCK = 4
MASKS = {
    "none": Mask(),
    "padding": Mask(key_mask=key_mask("interior", 2, 26)),
    "packed": Mask(segment_ids=packed([15, 1, 10], 2)),
}


def sparse(**options: object) -> NativeSparseAttention:
    sizes = {"block": BLOCK, "blocks": 4, "window": 3, "kv_heads": 2, "position": "rotary"}
    result = built("native_sparse", "causal", compression="mlp", **sizes | options)
    assert isinstance(result, NativeSparseAttention)
    return result


@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_naive_form_and_decodes(name: str) -> None:
    attention, mask = sparse(), MASKS[name]
    x, positions = torch.randn(2, 26, DIM), torch.arange(26)[None]
    sees = visible(attention, mask, 2, 26, 26)

    def naive(x: Tensor) -> Tensor:
        return attention.naive(x, x, sees, positions)

    real = torch.ones(2, 26, dtype=torch.bool) if mask.key_mask is None else mask.key_mask
    ours = values_and_gradients(lambda x: attention(x, mask=mask)[real], attention, x)
    assert_same(ours, values_and_gradients(lambda x: naive(x)[real], attention, x))
    for chunks in ([1] * 26, [5, 1, 20]):
        decoded = decode(attention, attention.new_cache(), x, chunks, mask=mask)
        assert_same(decoded[real], attention(x, mask=mask)[real])


def test_the_network_knows_the_order_in_a_block() -> None:
    """A mean does not: exchanged keys of a block change the weights of later queries."""
    attention = sparse(position=None)
    with torch.no_grad():
        attention.gate.weight.zero_()  # All branches alike.
    x = torch.randn(1, 24, DIM)
    other = x.clone()
    other[:, [4, 5]] = x[:, [5, 4]]
    assert not torch.allclose(attention(x)[:, -1], attention(other)[:, -1])
    mean = built("native_sparse", "causal", block=BLOCK, blocks=6, window=3, kv_heads=2)
    assert_same(mean(x)[:, -1], mean(other)[:, -1])


def test_a_block_is_compressed_once_it_is_whole() -> None:
    attention = sparse()
    x = torch.randn(1, 11, DIM)
    out = attention(x)
    for stop in range(1, 12):
        assert_same(attention(x[:, :stop]), out[:, :stop])


def test_a_compression_is_of_a_known_kind() -> None:
    with pytest.raises(UserError, match="compression must be one of mean, mlp, got 'max'"):
        built("native_sparse", "causal", block=4, blocks=4, window=3, compression="max")
