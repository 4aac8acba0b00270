"""States that decay: `retention`, `gated_linear`, `state_space_dual`, `log_linear`, `mlstm`."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu, softplus
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.log_linear import count_digits
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.cases import Case, mark_exhaustive
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same, default_dtype
from tests.conformance.test_naive import hold_against_naive

DIM, HEADS = 16, 4
NAMES = ["retention", "gated_linear", "state_space_dual", "log_linear", "mlstm"]
every_entry = pytest.mark.parametrize("name", NAMES)
# log a per token, with a channel of each kind at least: as the gates of entries, and far beyond.
DECAYS = {
    "none": [0.0, 0.0],
    "weak": [-0.01, -0.1],
    "strong": [-20.0, -0.01],
    "beyond all numbers": [-1e4, -800.0],
    "mixed in time": [-20.0, -20.0],
}


def causal(name: str, **options: object) -> Attention:
    return create_attention(name, dim=DIM, heads=HEADS, role="causal", **options)


def project_steps(attention: Attention, x: Tensor) -> Steps:
    positions = torch.arange(x.shape[1])[None]
    return attention.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


def run_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    return decayed_product(Steps(q, k, v, decay=decay))


def run_tokens(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Compute the recurrence, one token after the other."""
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[2]):
        state = decay[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append((q[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(outputs, dim=2)


def decays(kind: str, length: int, channels: int) -> Tensor:
    """Return decays [1 2 t c] of a kind; `mixed in time` starts strong and ends weak."""
    decay = torch.tensor(DECAYS[kind])[torch.arange(channels) % 2].expand(1, 2, length, -1).clone()
    if kind == "mixed in time":
        decay[:, :, 40:] = -1e-3
    return decay


def assert_exact_in_float32(
    ours: Tensor, expected: Tensor, single: list[Tensor], double: list[Tensor]
) -> None:
    """Compare an output in float32 with one in float64, and the gradients of their inputs."""
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    actual = torch.autograd.grad((ours * weights.float()).sum(), single)
    reference = torch.autograd.grad((expected * weights).sum(), double)
    for a, b in zip(actual, reference, strict=True):
        assert (a - b).abs().max() <= 2e-6 * b.abs().max() + 1e-30


@pytest.mark.parametrize("channels", [1, 6], ids=["a number of a head", "of a channel"])
@pytest.mark.parametrize("kind", list(DECAYS))
def test_decays_of_any_strength_are_exact_in_float32(kind: str, channels: int) -> None:
    """exp(G_i − G_j) overflows where it is split, and loses the digits of weak decays."""
    q, k, v = (torch.randn(2, 2, 150, 6) for _ in range(3))
    arguments = q, k, v, decays(kind, 150, channels)
    single = [part.float().requires_grad_() for part in arguments]
    double = [part.detach().double().requires_grad_() for part in single]
    ours, _ = run_chunks(*single)
    expected = run_tokens(*double)
    assert_exact_in_float32(ours, expected, single, double)


def test_all_is_forgotten_where_a_decay_is_infinite() -> None:
    q, k, v = (torch.randn(2, 2, 90, 6) for _ in range(3))
    decay = torch.full((2, 2, 90, 1), -0.1, requires_grad=True)
    reset = torch.arange(90)[:, None] == 70
    out, state = run_chunks(q, k, v, decay.masked_fill(reset, float("-inf")))
    alone, last = run_chunks(*(part[:, :, 70:] for part in (q, k, v, decay)))
    assert_same([out[:, :, 70:], state], [alone, last])
    (gradient,) = torch.autograd.grad(out.sin().sum(), decay)
    assert gradient.isfinite().all()


@every_entry
def test_work_grows_with_length(name: str) -> None:
    """Work is counted in products of matrices, which is the same on every machine."""
    attention = causal(name)

    def work(length: int) -> int:
        x = torch.randn(1, length, DIM, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            attention(x).sum().backward()
        return counter.get_total_flops()

    if name == "log_linear":  # Twice the tokens are twice the work, and that of a bucket more.
        assert work(2048) / work(1024) < 2.2
    else:  # The first chunk costs less, as it has no state to read.
        assert work(1536) - work(1024) == work(1024) - work(512)


@every_entry
def test_parallel_chunked_and_recurrent_forms_agree(name: str) -> None:
    attention = causal(name)
    x = torch.randn(2, 130, DIM)
    chunked = attention(x)
    attended = attention.attention_map(x) @ attention.values(x)
    assert_same(attention.project_output(attended, x), chunked)
    cache = attention.new_cache()
    one_by_one = [attention(x[:, t : t + 1], cache=cache) for t in range(130)]
    assert_same(torch.cat(one_by_one, dim=1), chunked)


@pytest.mark.parametrize("name", mark_exhaustive((name, "decay") for name in NAMES))
def test_chunks_meet_under_padding_and_segments(name: str) -> None:
    """A segment may end with a chunk, or be longer than one."""
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 108, 22]))
    mask = Mask(key_mask=key_mask("left", 2, 150), segment_ids=torch.stack([numbers, numbers // 2]))
    hold_against_naive(Case(name, "causal"), 150, 150, mask)


@every_entry
def test_sums_are_exact_under_autocast(name: str) -> None:
    """Sums are computed in float32, and not only stored in it."""
    with default_dtype("float32"):
        attention = causal(name)
        x = torch.randn(2, 150, DIM)
        steps = project_steps(attention, x)
        _, (exact, *_) = attention.recur(steps, x, TokenSpan(), ())
        with torch.autocast("cpu", torch.bfloat16):
            _, (state, *_) = attention.recur(steps, x, TokenSpan(), ())
    assert state.dtype == torch.float32
    assert torch.equal(state, exact)


@every_entry
def test_padding_touches_neither_gate_nor_state(name: str) -> None:
    """The state after a row is that after its real tokens, wherever the padding is."""
    attention = causal(name)
    x = torch.randn(1, 12, DIM)
    # What a gate would make of it forgets everything.
    padded = torch.full((1, 5, DIM), 50.0)
    alone = attention.new_cache()
    attention(x, cache=alone)
    # In the middle of a sequence the convolution takes padded tokens for zeros.
    starts = [0, 12] if name in ("state_space_dual", "log_linear") else [0, 7, 12]
    for start in starts:
        row = torch.cat([x[:, :start], padded, x[:, start:]], dim=1)
        real = torch.ones(1, 17, dtype=torch.bool)
        real[:, start : start + 5] = False
        cache = attention.new_cache()
        out = attention(row, mask=Mask(key_mask=real), cache=cache)
        assert_same(out[real], attention(x)[0])
        states = [next(p for p in c.state if p.dim() >= 4) for c in (cache, alone)]
        if name == "log_linear":  # The longer row has room for one bucket more.
            assert (states[0][..., 4:, :] == 0).all()
            states[0] = states[0][..., :4, :]
        assert_same(*states)


# Retention


def test_rates_of_retention_are_those_of_the_paper() -> None:
    """a = 1 − 2^(−5−h), h from 0: 31/32, 63/64, …"""
    decay = causal("retention").log_decay(torch.randn(1, 3, DIM)).exp()
    assert_same(decay[0, :, 0, 0], torch.tensor([31 / 32, 63 / 64, 127 / 128, 255 / 256]))
    assert (decay == decay[:, :, :1]).all()


def test_rates_of_many_heads_stay_below_one_in_float32() -> None:
    """1 − 2^(−5−h) rounds to 1 from h = 20 on; its logarithm must not."""
    attention = create_attention("retention", dim=64, heads=32, role="causal")
    assert (attention.log_decay(torch.randn(1, 3, 64, dtype=torch.float32)) < 0).all()


def test_retention_norms_each_head_and_gates_it() -> None:
    """A head that is larger by a factor has the same output."""
    attention = causal("retention")
    x, attended = torch.randn(2, 5, DIM), torch.randn(2, HEADS, 5, attention.value_dim)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    out = attention.project_output(1e4 * attended, x)
    torch.testing.assert_close(attention.project_output(1e4 * factors * attended, x), out)
    centred = attended - attended.mean(dim=-1, keepdim=True)
    normed = centred / centred.square().mean(dim=-1, keepdim=True).sqrt()
    expected = normed.transpose(1, 2).flatten(-2) * silu(attention.gate(x))
    torch.testing.assert_close(out, attention.output(expected))


# Gated linear attention


def test_the_temperature_of_the_gate_is_sixteen() -> None:
    """The decay is log σ(0)/16: a half-life of sixteen tokens if gates are zero."""
    attention = causal("gated_linear")
    torch.nn.init.zeros_(attention.forget[1].weight)
    torch.nn.init.zeros_(attention.forget[1].bias)
    decay = attention.log_decay(torch.randn(2, 3, DIM))
    assert_same(decay, torch.tensor(0.5).log().expand_as(decay) / 16)


def test_gates_are_those_of_the_tokens_own_channels() -> None:
    """diag(a_t) S_{t−1} acts on the channels of keys, not of values, before k_t is added."""
    attention = causal("gated_linear")
    x = torch.randn(2, 40, DIM)
    steps = project_steps(attention, x)
    assert steps.decay.shape == steps.k.shape
    attended = run_tokens(steps.q, steps.k, steps.v, steps.decay)
    assert_same(attention(x), attention.project_output(attended, x))


# State-space duality


def convolution_input(attention: Attention, x: Tensor) -> Tensor:
    return torch.cat([attention.value(x), attention.key(x), attention.query(x)], dim=-1)


def test_the_state_of_the_convolution_belongs_to_the_cache() -> None:
    attention = causal("state_space_dual")
    x = torch.randn(2, 9, DIM)
    cache = attention.new_cache()
    attention(x[:, :6], cache=cache)
    state = cache.state[-1].clone()
    assert_same(state, convolution_input(attention, x)[:, 3:6].transpose(1, 2))
    rest = attention(x[:, 6:], cache=cache)
    assert_same(rest, attention(x)[:, 6:])
    # Without it the next tokens would come out otherwise.
    other = attention.new_cache()
    attention(x[:, :6], cache=other)
    other.state = (*other.state[:-1], torch.zeros_like(state))
    assert not torch.allclose(attention(x[:, 6:], cache=other), rest)


def test_the_step_scales_the_input_and_the_decay() -> None:
    """Δ = softplus(Δ + bias), with the bias inside; a = exp(−e^A Δ); B is scaled by Δ, C is not."""
    attention = causal("state_space_dual", groups=2, state_dim=8)
    torch.nn.init.normal_(attention.step_bias)
    x = torch.randn(2, 12, DIM)
    step = softplus(attention.step(x) + attention.step_bias).transpose(1, 2)[..., None]
    mixed, _ = attention.convolution(convolution_input(attention, x), TokenSpan())
    v, b, c = silu(mixed).split([32, 16, 16], dim=-1)
    # Two heads share each of two groups.
    b, c = (
        part.unflatten(-1, (2, 8)).repeat_interleave(2, dim=2).transpose(1, 2) for part in (b, c)
    )
    v = v.unflatten(-1, (HEADS, 8)).transpose(1, 2)
    decay = -attention.rate.exp()[:, None, None] * step
    y = run_tokens(c, step * b, v, decay) + attention.skip[:, None, None] * v
    # The gate comes before the norm, which is over a group.
    y = y.transpose(1, 2).flatten(-2) * silu(attention.gate(x))
    y = rms_norm(y.unflatten(-1, (2, 16)), (16,), eps=1e-5).flatten(-2)
    assert_same(attention(x), attention.output(y * attention.scale))


@pytest.mark.parametrize("name", ["state_space_dual", "log_linear"])
def test_the_skip_gives_nothing_to_a_query_that_sees_nothing(name: str) -> None:
    attention = causal(name)
    real = torch.tensor([[False, False, True, True]])
    out = attention(torch.randn(1, 4, DIM), mask=Mask(key_mask=real))
    assert (out[0, :2] == 0).all() and (out[0, 2:] != 0).any(dim=-1).all()


# The short convolution


def test_the_convolution_is_that_of_torch() -> None:
    ours = ShortConvolution(6, 4, bias=True)
    theirs = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3)
    theirs.load_state_dict({"weight": ours.weight[:, None], "bias": ours.bias})
    x = torch.randn(2, 9, 6)
    assert_same(ours(x, TokenSpan())[0], theirs(x.transpose(1, 2))[..., :9].transpose(1, 2))


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 5, 1, 1], [9]], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_taps_stay_in_their_segment_across_chunks(kernel_size: int, chunks: list[int]) -> None:
    convolution = ShortConvolution(3, kernel_size)
    x, segment_ids = torch.randn(2, 9, 3), torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]]).expand(2, -1)
    outputs, state, start = [], None, 0
    for chunk in chunks:
        stop = start + chunk
        span = TokenSpan(Mask(segment_ids=segment_ids[:, :stop]), start)
        y, state = convolution(x[:, start:stop], span, state)
        outputs.append(y)
        start = stop
    together = torch.cat(outputs, dim=1)
    for part in (slice(0, 3), slice(3, 5), slice(5, 9)):
        assert_same(together[:, part], convolution(x[:, part], TokenSpan())[0])


def test_a_row_padded_at_the_left_is_convolved_as_the_row_alone() -> None:
    convolution = ShortConvolution(3, 4)
    x, real = torch.randn(1, 9, 3), torch.arange(9)[None] >= 3
    y, state = convolution(x, TokenSpan(Mask(key_mask=real)))
    alone, last = convolution(x[:, 3:], TokenSpan())
    assert_same([y[:, 3:], state], [alone, last])


def test_the_convolutions_state_does_not_hold_the_prompt() -> None:
    _, state = ShortConvolution(3, 4)(torch.randn(2, 1000, 3), TokenSpan())
    assert state.untyped_storage().nbytes() == state.nbytes


# Log-linear attention


def test_buckets_are_those_of_a_fenwick_tree() -> None:
    positions = torch.arange(8)
    table = count_digits(positions[:, None] ^ positions).tril(-1)
    assert table[5].tolist() == [3, 3, 3, 3, 1, 0, 0, 0]
    assert table[6].tolist() == [3, 3, 3, 3, 2, 2, 0, 0]
    assert table[7].tolist() == [3, 3, 3, 3, 2, 2, 1, 0]
    assert table[4].tolist() == [3, 3, 3, 3, 0, 0, 0, 0]


def test_with_equal_levels_it_is_the_linear_mechanism() -> None:
    ours, plain = causal("log_linear"), causal("state_space_dual")
    plain.load_state_dict(
        {name: part for name, part in ours.state_dict().items() if not name.startswith("level")}
    )
    x = torch.randn(2, 150, DIM)
    ours.level_weights = lambda x: torch.ones(2, HEADS, x.shape[1], 15)
    assert_same(ours(x), plain(x))


def test_levels_are_weighed_by_the_query() -> None:
    """The weight is λ_t^l, not λ_s^l: it depends on the query alone."""
    attention = causal("log_linear")
    x = torch.randn(1, 9, DIM)
    before = attention.attention_map(x)
    level_weights = attention.level_weights

    def changed(x: Tensor) -> Tensor:
        factor = torch.ones(x.shape[1], 15)
        factor[6, 3] = 0.0  # Of the token at 6, what is in its bucket of four.
        return level_weights(x) * factor

    attention.level_weights = changed
    difference = (attention.attention_map(x) != before).any(dim=1)[0]
    assert difference.nonzero().tolist() == [[6, 0], [6, 1], [6, 2], [6, 3]]
    attended = attention.attention_map(x) @ attention.values(x)
    assert_same(attention(x), attention.project_output(attended, x))


def test_one_bucket_for_each_bit_of_the_length() -> None:
    attention = causal("log_linear")
    cache = attention.new_cache()
    for length in range(1, 71):
        attention(torch.randn(1, 1, DIM), cache=cache)
        filled = (cache.state[0][0, 0] != 0).any(dim=-1).any(dim=0)
        assert filled.tolist() == [bool(length >> bit & 1) for bit in range(length.bit_length())]


def test_more_tokens_than_there_are_levels_for_are_refused() -> None:
    attention = causal("log_linear", max_length=8)
    assert attention.level_scale.shape == (HEADS, 4)
    attention(torch.randn(1, 8, DIM))
    with pytest.raises(UserError, match="max_length=8, got 9"):
        attention(torch.randn(1, 9, DIM))


# Options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("retention", {"expand": 0}),
        ("gated_linear", {"expand": 0}),
        ("gated_linear", {"rank": 0}),
        ("gated_linear", {"temperature": 0.0}),
        ("state_space_dual", {"groups": 3}),
        ("state_space_dual", {"groups": 0}),
        ("state_space_dual", {"expand": 0}),
        ("state_space_dual", {"state_dim": 0}),
        ("state_space_dual", {"kernel_size": 0}),
        ("log_linear", {"max_length": 0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float]) -> None:
    ((option, value),) = options.items()
    with pytest.raises(UserError, match=f"{option}.*{value}"):
        causal(name, **options)


@pytest.mark.parametrize("size", [-300.0, 300.0])
def test_exponential_gates_of_mlstm_do_not_overflow(size: float) -> None:
    """A gate of e^300 is beyond float32."""
    with default_dtype("float32"):
        attention = causal("mlstm")
        with torch.no_grad():
            attention.input_gate.weight.fill_(size / DIM)
        x = torch.rand(1, 70, DIM)
        out = attention(x)
        out.sin().sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())
    exact = attention.double()(x.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-3)


def test_the_normaliser_of_mlstm_is_one_at_least() -> None:
    """Also where its state is divided by e^m: then it is e^−m."""
    attention = causal("mlstm")
    x = torch.randn(1, 1, DIM)
    with torch.no_grad():
        attention.query.weight.mul_(1e-3)
    steps = project_steps(attention, x)
    expected = (steps.q * steps.k).sum(-1, keepdim=True) * steps.rate.exp()
    assert expected.abs().max() < 1
    assert_same(attention.attention_map(x), expected)


def test_a_large_gate_of_mlstm_outweighs_all_others() -> None:
    attention = causal("mlstm")
    x = torch.randn(1, 5, DIM)
    steps = project_steps(attention, x)
    gates = torch.zeros_like(steps.rate)
    gates[:, :, 2] = 800.0
    out, _ = attention.recur(steps._replace(rate=gates), x, TokenSpan(), ())
    signs = (steps.q[:, :, 3] * steps.k[:, :, 2]).sum(-1, keepdim=True).sign()
    assert_same(out[:, :, 3], signs * steps.v[:, :, 2])
