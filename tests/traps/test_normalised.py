"""Of ways from scores to weights, and of what is done to scores before."""

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.dense.selective import accumulate_masking
from attention_zoo.masks import Mask
from tests.conformance.numbers import assert_same, default_dtype

DIM, HEADS, LENGTH = 16, 4, 7
SPARSE = ("sparsemax", "entmax15", "entmax")


def causal(name: str, **options: object) -> Attention:
    return create_attention(name, dim=DIM, heads=HEADS, role="causal", **options)


def twin(attention: Attention, name: str, **options: object) -> Attention:
    """Another entry, of the same projections."""
    other = causal(name, **options)
    other.load_state_dict(attention.state_dict(), strict=False)
    return other


def tokens(length: int = LENGTH) -> Tensor:
    return 3.0 * torch.randn(2, length, DIM)


def scores_of(attention: Attention, x: Tensor) -> Tensor:
    """[b h q k], of the queries and keys that they have without an encoding."""
    k, _ = attention.project_key_value(x)
    return attention.project_query(x) @ k.transpose(-2, -1) / attention.head_dim**0.5


def future(length: int = LENGTH) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


# Sinks


def test_a_sink_multiplies_softmax_by_a_sigmoid() -> None:
    """σ(lse − s), with a score s for each query head, also where heads share keys."""
    attention = create_attention(
        "attention_sink", dim=DIM, heads=HEADS, kv_heads=2, role="causal", backend="sdpa"
    )
    torch.nn.init.normal_(attention.sinks)
    plain = create_attention("grouped_query", dim=DIM, heads=HEADS, kv_heads=2, role="causal")
    plain.load_state_dict(attention.state_dict(), strict=False)
    x = tokens()
    k = attention.project_key_value(x)[0].repeat_interleave(2, dim=1)
    scores = attention.project_query(x) @ k.transpose(-2, -1) / attention.head_dim**0.5
    total = scores.masked_fill(future(), float("-inf")).logsumexp(dim=-1, keepdim=True)
    kept = (total - attention.sinks[:, None, None]).sigmoid()
    assert_same(attention.attention_map(x), plain.attention_map(x) * kept)
    assert_same(
        attention(x), plain.project_output(plain.attention_map(x) * kept @ plain.values(x), x)
    )


def test_off_by_one_is_a_sink_of_score_zero() -> None:
    attention = causal("attention_sink")
    torch.nn.init.zeros_(attention.sinks)
    x = tokens()
    assert_same(twin(attention, "off_by_one")(x), attention(x))


def test_a_sink_takes_all_where_scores_are_low() -> None:
    """Also where exp(−score) is beyond the largest number."""
    attention = causal("attention_sink")
    torch.nn.init.constant_(attention.sinks, 1e4)
    x = tokens()
    assert_same(attention.attention_map(x), torch.zeros(2, HEADS, LENGTH, LENGTH))
    torch.nn.init.constant_(attention.sinks, -1e4)
    assert_same(attention.attention_map(x), twin(attention, "multi_head").attention_map(x))


# Sparsemax and its relatives


@pytest.mark.parametrize("name", SPARSE)
def test_masked_scores_are_finite_and_their_weights_exact_zeros(name: str) -> None:
    """With scores beyond what half of the float32 range could be subtracted from."""
    with default_dtype("float32"):
        attention = causal(name)
        visible = torch.tensor([[True, False, True], [False] * 3, [False, True, False]])[None, None]
        scores = torch.tensor([[3e4, 1e38, 3e4], [1.0, 2.0, 3.0], [1e38, -1e38, 1e38]])
        scores = scores.expand(1, HEADS, 3, 3).clone().requires_grad_()
        weights = attention.normalise(scores, visible)
        expected = torch.tensor([[0.5, 0.0, 0.5], [0.0] * 3, [0.0, 1.0, 0.0]])
        torch.testing.assert_close(weights, expected.expand_as(weights))
        assert (weights[~visible.expand_as(weights)] == 0).all()
        (gradient,) = torch.autograd.grad(weights[..., 0].sum(), scores)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", SPARSE)
def test_weights_far_below_the_highest_are_exactly_zero(name: str) -> None:
    weights = causal(name).attention_map(tokens(33))
    assert (weights.tril().eq(0).sum(dim=-1) > 33 - torch.arange(1, 34)).any()
    assert_same(weights.sum(dim=-1), torch.ones(2, HEADS, 33))


@pytest.mark.parametrize("name", SPARSE)
def test_equal_scores_have_equal_weights(name: str) -> None:
    scores = torch.tensor([2.0, 2.0, -9.0, 2.0]).expand(1, HEADS, 1, 4)
    weights = causal(name).normalise(scores, None)
    assert_same(weights, torch.tensor([1.0, 1.0, 0.0, 1.0]).expand_as(weights) / 3)


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients_are_differences(name: str) -> None:
    attention = causal(name)
    scores = torch.randn(1, HEADS, 2, 5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: attention.normalise(z, None), scores)


def test_the_gradient_of_alpha_is_a_difference() -> None:
    attention = causal("entmax")
    scores = torch.randn(1, HEADS, 2, 5)

    def by_shape(shape: Tensor) -> Tensor:
        return torch.func.functional_call(Weights(attention), {"attention.shape": shape}, (scores,))

    shape = torch.tensor([-3.0, -1.0, 0.0, 2.0], requires_grad=True)
    assert torch.autograd.gradcheck(by_shape, shape)


class Weights(torch.nn.Module):
    """Calls what is no forward."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, scores: Tensor) -> Tensor:
        return self.attention.normalise(scores, None)


@pytest.mark.parametrize(
    ("shape", "name"), [(-16.0, "multi_head"), (0.0, "entmax15"), (30.0, "sparsemax")]
)
def test_alpha_goes_from_softmax_to_sparsemax(shape: float, name: str) -> None:
    attention, x = causal("entmax"), tokens(33)
    torch.nn.init.constant_(attention.shape, shape)
    expected = twin(attention, name).attention_map(x)
    torch.testing.assert_close(attention.attention_map(x), expected, rtol=1e-4, atol=1e-5)


# Weights that are not normalised


def test_the_bias_of_sigmoid_attention_does_not_follow_the_length() -> None:
    attention, x = causal("sigmoid", length=20), tokens(11)
    weights = attention.attention_map(x)
    assert_same(weights, (scores_of(attention, x) - math.log(20)).sigmoid().tril())
    assert_same(attention.attention_map(x[:, :5]), weights[:, :, :5, :5])


def test_relu_divides_by_the_keys_in_sight() -> None:
    """Not by the length, nor by the padding in it."""
    attention, x = causal("relu"), tokens()
    count = torch.arange(1, LENGTH + 1)[:, None]
    assert_same(attention.attention_map(x), scores_of(attention, x).relu().tril() / count)
    real = (torch.arange(LENGTH) > 2).expand(2, LENGTH)
    assert_same(attention(x, mask=Mask(key_mask=real))[:, 3:], attention(x[:, 3:]))


def test_scalable_softmax_counts_the_keys_in_sight() -> None:
    attention, x = causal("scalable_softmax"), tokens()
    torch.nn.init.uniform_(attention.sharpness, 0.5, 2.0)
    growth = attention.sharpness[:, None, None] * torch.arange(1.0, LENGTH + 1)[:, None].log()
    scores = (growth * scores_of(attention, x)).masked_fill(future(), float("-inf"))
    assert_same(attention.attention_map(x), scores.softmax(dim=-1))
    real = (torch.arange(LENGTH) > 2).expand(2, LENGTH)
    assert_same(attention(x, mask=Mask(key_mask=real))[:, 3:], attention(x[:, 3:]))


# Top-k


def test_the_best_are_chosen_among_visible_keys() -> None:
    """The future takes no part: each query has its k keys, or all that it sees."""
    weights = causal("top_k", top_k=3).attention_map(tokens(33))
    assert (weights.ne(0).sum(dim=-1) == torch.arange(1, 34).clamp(max=3)).all()


def test_ties_do_not_let_more_in() -> None:
    attention = causal("top_k", top_k=2)
    weights = attention.normalise(torch.zeros(1, HEADS, 1, 5), None)
    assert_same(weights.sort(dim=-1).values[0, 0, 0], torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top_k", {"top_k": 0}),
        ("sigmoid", {"length": 0}),
        ("multi_token", {"query_kernel": 0}),
        ("multi_token", {"head_kernel": 3}),
    ],
)
def test_impossible_sizes_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        causal(name, **options)


# Stick-breaking


def test_the_nearest_key_breaks_the_stick_first() -> None:
    attention = causal("stick_breaking")
    weights = attention.normalise(torch.zeros(1, HEADS, 1, 3), None)
    assert_same(weights[0, 0, 0], torch.tensor([0.125, 0.25, 0.5]))


def test_masked_keys_leave_the_stick_as_it_is() -> None:
    attention = causal("stick_breaking")
    visible = torch.tensor([True, False, True])[None, None, None]
    scores = torch.tensor([0.0, 9.0, 0.0]).expand(1, HEADS, 1, 3)
    assert_same(attention.normalise(scores, visible)[0, 0, 0], torch.tensor([0.25, 0.0, 0.5]))


def test_long_sticks_stay_numbers() -> None:
    """A product of as many small parts is zero, and its gradient by each no number."""
    with default_dtype("float32"):
        scores = torch.full((1, HEADS, 1, 5000), 30.0)
        scores[..., :10] = -200.0
        scores.requires_grad_()
        weights = causal("stick_breaking").normalise(scores, None)
        (gradient,) = torch.autograd.grad(weights.sum(), scores)
        assert weights.isfinite().all() and gradient.isfinite().all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, HEADS, 1))


# Multi-token


def test_kernels_start_as_the_identity() -> None:
    attention, x = causal("multi_token"), tokens()
    assert_same(attention(x), twin(attention, "multi_head")(x))


def drawn(**options: int) -> Attention:
    attention = causal("multi_token", **options)
    torch.nn.init.normal_(attention.kernel)
    torch.nn.init.normal_(attention.mixture)
    return attention


def test_scores_are_masked_before_the_convolution() -> None:
    """Else the scores of future keys reach those of the keys beside them."""
    attention, x = drawn(), tokens()
    other = torch.cat([x[:, :4], tokens()[:, 4:]], dim=1)
    assert_same(attention(other)[:, :4], attention(x)[:, :4])


def test_the_convolution_reads_earlier_queries_and_keys_on_both_sides() -> None:
    """One weight of the kernel at a time, against the score that it stands for."""
    attention, x = causal("multi_token", query_kernel=3, key_kernel=4), tokens()
    scores = scores_of(attention, x).tril()
    # m from −2 to 1, by which the key that is read stands before the query's.
    for back, place in ((0, 0), (1, 0), (1, 2), (2, 3)):
        with torch.no_grad():
            attention.kernel.zero_()
            attention.kernel[:, back, place] = 1.0
        shift = place - 2
        z = attention.convolve(scores, ~future()[None, None])
        assert_same(z[:, :, 4, 3], scores[:, :, 4 - back, 3 - shift])


@pytest.mark.parametrize("place", [0, 3])
def test_padding_does_not_enter_the_convolution(place: int) -> None:
    """Neither its keys nor its queries, at the left or between."""
    attention, x = drawn(), tokens()
    real = (torch.arange(LENGTH) != place).expand(2, LENGTH)
    other = x.clone()
    other[:, place] = 100.0
    ours, theirs = (
        attention(part, mask=Mask(key_mask=real))[:, place + 1 :] for part in (x, other)
    )
    assert_same(ours, theirs)


def test_heads_mix_within_their_group() -> None:
    attention, x = drawn(head_kernel=2), tokens()
    with torch.no_grad():
        before = attention.attention_map(x)
        attention.query.weight[: DIM // HEADS] += 1.0
        changed = (attention.attention_map(x) != before).any(dim=-1).any(dim=-1)
    assert changed[0].tolist() == [True, True, False, False]


def test_decoding_needs_no_more_than_the_last_queries() -> None:
    attention, x = drawn(query_kernel=3), tokens(9)
    cache = attention.new_cache()
    parts = [attention(x[:, i : i + 1], cache=cache) for i in range(9)]
    assert_same(torch.cat(parts, dim=1), attention(x))
    assert cache.queries.tokens["q"].shape[2] == 2


# Selective


def test_what_masks_in_selective_attention() -> None:
    """The first head's positive scores, for later queries; never oneself or the first token."""
    scores = torch.tensor([[9.0, 0, 0, 0], [9, 9, 0, 0], [9, 2, 9, 0], [9, 3, -5, 9]])[None]
    visible = ~future(4)[None, None]
    masked = accumulate_masking(scores, visible, torch.zeros(1, 4, 1))
    expected = [[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0], [0, 5, 0, 0]]
    assert_same(masked[0], torch.tensor(expected))


def test_masking_begins_with_the_next_query() -> None:
    attention, x = causal("selective"), tokens()
    scores = scores_of(attention, x)
    selection = scores[:, :1].relu().tril(-1)
    selection[..., 0] = 0.0
    left = scores - (selection.cumsum(dim=-2) - selection)
    expected = left.masked_fill(future(), float("-inf")).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)


def test_all_heads_are_masked_by_the_first_alone() -> None:
    attention, x = causal("selective"), tokens()
    with torch.no_grad():
        before = attention.attention_map(x)
        attention.query.weight[: DIM // HEADS] *= 2.0
        first = attention.attention_map(x)
        attention.query.weight[-DIM // HEADS :] *= 2.0
        last = attention.attention_map(x)
    assert all((first[:, head] != before[:, head]).any() for head in range(HEADS))
    assert_same(last[:, :-1], first[:, :-1])


def test_the_first_token_behind_padding_is_never_masked() -> None:
    attention, x = causal("selective"), tokens()
    real = (torch.arange(LENGTH) > 2).expand(2, LENGTH)
    assert_same(attention(x, mask=Mask(key_mask=real))[:, 3:], attention(x[:, 3:]))


# Forgetting


def test_open_gates_forget_nothing() -> None:
    attention, x = causal("forgetting"), tokens()
    torch.nn.init.zeros_(attention.forget.weight)
    torch.nn.init.constant_(attention.forget.bias, 100.0)
    assert_same(attention(x), twin(attention, "multi_head")(x))


def test_a_token_does_not_fade_itself() -> None:
    """The gates between count, that of the query included, that of the key not."""
    attention, x = causal("forgetting"), tokens(3)
    torch.nn.init.zeros_(attention.query.weight)
    f = attention.forget(x).sigmoid().transpose(1, 2)
    powers = torch.stack([f[..., 1] * f[..., 2], f[..., 2], torch.ones_like(f[..., 2])], dim=-1)
    assert_same(attention.attention_map(x)[:, :, 2], powers / powers.sum(dim=-1, keepdim=True))


def test_padded_tokens_do_not_move_the_gate() -> None:
    """Those between two tokens would fade the first of them."""
    attention, x = causal("forgetting"), tokens()
    real = (torch.arange(LENGTH) != 3).expand(2, LENGTH)
    assert_same(
        attention(x, mask=Mask(key_mask=real))[real],
        attention(x[real].view(2, -1, DIM)).flatten(0, 1),
    )


def test_gates_are_summed_in_float32() -> None:
    """In bfloat16 a sum stands still once it is 256 times as large as what is added."""
    with default_dtype("float32"):
        attention = create_attention("forgetting", dim=DIM, heads=HEADS, role="causal")
        torch.nn.init.zeros_(attention.query.weight)
        torch.nn.init.zeros_(attention.forget.weight)
        torch.nn.init.zeros_(attention.forget.bias)
        with torch.autocast("cpu", torch.bfloat16):
            weights = attention.attention_map(torch.randn(1, 700, DIM))
    halves = torch.tensor([0.125, 0.25, 0.5], dtype=torch.float32)
    torch.testing.assert_close(
        weights[0, :, -1, -3:].float(), halves.expand(HEADS, 3), rtol=1e-2, atol=0.0
    )


def test_the_gates_belong_to_the_cache() -> None:
    attention, x = causal("forgetting"), tokens()
    cache = attention.new_cache()
    parts = [attention(x[:, i : i + 1], cache=cache) for i in range(LENGTH)]
    assert_same(torch.cat(parts, dim=1), attention(x))
