"""Traps of mixture-of-head attention: which heads a token has, and what their gates weigh."""

import pytest
import torch
from torch import Tensor

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention, take_auxiliary_loss
from attention_zoo.masks import Mask
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same
from tests.traps.dense import (
    DIM,
    HEADS,
    ROLES,
    WIDTH,
    assert_whole,
    built,
    expose_heads,
    split,
    tokens,
)


def head_sizes(attention: Attention, x: Tensor) -> Tensor:
    """How long the output of each head is, for each token: [b q h]."""
    expose_heads(attention)
    return split(attention(x)).norm(dim=-1).transpose(1, 2)


@pytest.mark.parametrize(("shared", "routed"), [(0, 1), (0, 3), (1, 2), (2, 1), (3, 1)])
def test_a_token_has_the_shared_heads_and_the_best_others(shared: int, routed: int) -> None:
    options = {"shared_heads": shared, "routed_heads": routed}
    attention = built("mixture_of_heads", **options)
    x = tokens()
    sizes = head_sizes(attention, x)
    assert (sizes[..., :shared] > 0).all()
    best = attention.router(x).topk(routed, dim=-1).indices
    expected = torch.zeros(*x.shape[:2], HEADS - shared).scatter(-1, best, 1.0).bool()
    assert torch.equal(sizes[..., shared:] > 0, expected)
    assert_whole(built("mixture_of_heads", "causal", position="rotary", **options))


def test_gates_are_one_on_average() -> None:
    """Of the heads that a token has: so outputs are as large as those of multi-head attention."""
    for shared, routed in ((0, 2), (1, 2), (2, 2)):
        attention = built("mixture_of_heads", shared_heads=shared, routed_heads=routed)
        gates = attention.gates(tokens())
        kinds = [gates[..., :shared].sum(-1), gates[..., shared:].sum(-1)]
        if shared:
            assert_same(kinds[0] / shared + kinds[1] / routed, torch.full_like(kinds[0], 2.0))
        else:
            assert_same(kinds[1], torch.full_like(kinds[1], float(routed)))


def test_routers_that_prefer_nothing_give_multi_head_attention() -> None:
    """Where all heads are selected."""
    ours = built("mixture_of_heads", "causal", shared_heads=1, routed_heads=3)
    theirs = built("multi_head", "causal")
    theirs.load_state_dict(ours.state_dict(), strict=False)
    torch.nn.init.zeros_(ours.router.weight)
    torch.nn.init.zeros_(ours.kind_router.weight)
    x = tokens()
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("role", ROLES)
def test_the_querys_token_selects(role: str) -> None:
    attention = built("mixture_of_heads", role)
    x = tokens()
    inputs = (x, tokens(9)) if role == "cross" else (x,)
    heads = attention.attention_map(*inputs) @ attention.values(*inputs)
    gated = heads * attention.gates(x).transpose(1, 2)[..., None]
    assert_same(attention(*inputs), gated.transpose(1, 2).flatten(-2) @ attention.output.weight.T)


def test_the_loss_is_of_shares_and_mean_probabilities_of_real_tokens() -> None:
    attention = built("mixture_of_heads", "causal")
    x, real = tokens(), key_mask("left", 2, 7)
    attention(x, mask=Mask(key_mask=real))
    loss = take_auxiliary_loss(attention)
    probabilities = attention.router(x)[real].softmax(dim=-1)
    best = probabilities.topk(2, dim=-1).indices
    shares = torch.zeros_like(probabilities).scatter(-1, best, 1.0).mean(dim=0)
    assert loss is not None
    assert_same(loss, 0.01 * 3 * (shares * probabilities.mean(dim=0)).sum())
    (gradient,) = torch.autograd.grad(loss, attention.router.weight)
    assert gradient.abs().max() > 0
    attention.eval()(x)
    assert take_auxiliary_loss(attention) is None


def test_a_balanced_choice_has_the_least_loss() -> None:
    attention = built("mixture_of_heads", "causal", shared_heads=0, routed_heads=1)
    with torch.no_grad():
        attention.router.weight.copy_(10.0 * torch.eye(HEADS, attention.dim))
    balanced, same = torch.zeros(2, 1, HEADS, attention.dim)
    balanced[0, :, :HEADS] = torch.eye(HEADS)
    same[0, :, 0] = 1.0
    losses = []
    for x in (balanced, same):
        attention(x)
        losses.append(take_auxiliary_loss(attention))
    assert losses[0] is not None and losses[1] is not None
    assert losses[0].item() == pytest.approx(0.01)
    assert losses[1].item() == pytest.approx(0.04, rel=1e-3)


def test_half_of_the_other_heads_are_selected_by_default() -> None:

    def chosen(heads: int) -> int:
        sizes = {"dim": DIM, "heads": heads, "head_dim": WIDTH}
        return create_attention("mixture_of_heads", role="causal", **sizes).routed_heads

    assert [chosen(heads) for heads in (2, 4, 5, 16)] == [1, 2, 2, 8]
    with pytest.raises(UserError, match="routed_heads=1, heads=1"):
        chosen(1)


def test_heads_suffice() -> None:
    with pytest.raises(UserError, match="shared_heads=2, routed_heads=3, heads=4"):
        built("mixture_of_heads", shared_heads=2, routed_heads=3)
    with pytest.raises(UserError, match="routed_heads must be at least 1"):
        built("mixture_of_heads", routed_heads=0)
