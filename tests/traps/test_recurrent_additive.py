"""Additive attention over recurrent networks: `recurrent_additive`."""

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.zoo import Role
from tests.conformance.numbers import assert_same

DIM, HEADS = 16, 4


def new_attention(role: Role) -> Attention:
    return create_attention("recurrent_additive", dim=DIM, heads=HEADS, role=role)


def annotations(attention: Attention, source: Tensor) -> Tensor:
    (forward,) = attention.rnn(source, TokenSpan())
    (backward,) = attention.backward_rnn(source.flip(1), TokenSpan())
    return torch.cat([forward, backward.flip(1)], dim=-1)


def test_annotations_read_the_source_in_both_directions() -> None:
    """The first token's annotation has seen the last token, and the last one's the first."""
    attention = new_attention("cross")
    source = torch.randn(1, 6, DIM)
    for changed, other in ((0, 5), (5, 0)):
        longer = source.clone()
        longer[:, changed] += 1.0
        difference = attention.annotate(longer, TokenSpan()) - attention.annotate(
            source, TokenSpan()
        )
        assert (difference[0, other] != 0).any()
    assert_same(attention.annotate(source, TokenSpan()), annotations(attention, source))


def test_the_backward_network_starts_at_the_last_real_token() -> None:
    """Padding at the right stands first for it."""
    attention = new_attention("cross")
    x, source = torch.randn(1, 3, DIM), torch.randn(1, 6, DIM)
    longer = torch.cat([source, torch.randn(1, 4, DIM)], dim=1)
    mask = Mask(key_mask=torch.arange(10)[None] < 6)
    assert_same(attention(x, longer, mask=mask), attention(x, source))


def test_it_is_additive_attention_over_annotations() -> None:
    """Queries of cross-attention are tokens, and keys and values both come from annotations."""
    attention = new_attention("cross")
    x, source = torch.randn(2, 3, DIM), torch.randn(2, 6, DIM)
    states = annotations(attention, source)
    q, k, v = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in (attention.query(x), attention.key(states), attention.value(states))
    )
    energies = torch.tanh(q[:, :, :, None] + k[:, :, None])
    scores = (energies * attention.energy[:, None, None]).sum(dim=-1)
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(-2)
    assert_same(attention(x, source), attention.output(attended))


def test_a_causal_network_reads_in_one_direction() -> None:
    attention = new_attention("causal")
    assert attention.backward_rnn is None
    cache = attention.new_cache()
    x = torch.randn(1, 6, DIM)
    attention(x, cache=cache)
    assert_same(cache.states[0], attention.rnn(x, TokenSpan())[0][:, -1])


def test_a_window_is_refused() -> None:
    """The state of a network sees beyond any window."""
    with pytest.raises(Unsupported, match="window"):
        new_attention("causal")(torch.randn(1, 6, DIM), mask=Mask(window=2))
