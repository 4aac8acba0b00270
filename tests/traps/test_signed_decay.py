"""`negative_eigenvalues` of `state_space_dual` and `selective_scan`: decays between −1 and 1."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent import kernels, selective_scan
from attention_zoo.attention.recurrent.channel_scan import channel_scan
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.signed_decay import extend_decay, run_signed
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.cases import moved
from tests.conformance.definition import key_mask, packed, visible
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients
from tests.parity.compared import fla
from tests.traps.test_decay import assert_exact_in_float32

DIM = 16
OPTIONS = {"state_space_dual": {"heads": 4, "groups": 2, "state_dim": 6}, "selective_scan": {}}
every_entry = pytest.mark.parametrize("name", list(OPTIONS))
every_product = pytest.mark.parametrize(
    ("product", "width", "channels"),
    [(decayed_product, 5, 1), (decayed_product, 5, 6), (channel_scan, 1, 6)],
    ids=["head", "channel", "scan"],
)


def causal(name: str, **options: object) -> Attention:
    """Create an entry about half of whose decays are negative."""
    chosen = OPTIONS[name] | {"negative_eigenvalues": True} | options
    attention = moved(create_attention(name, dim=DIM, role="causal", **chosen))
    with torch.no_grad():
        step_bias = attention.step_bias if name == "state_space_dual" else attention.step[1].bias
        nn.init.uniform_(step_bias, -2.0, 2.0)
        nn.init.uniform_(attention.rate, -2.0, 1.0)
    return attention


def project_steps(attention: Attention, x: Tensor) -> Steps:
    positions = torch.arange(x.shape[1])[None]
    return attention.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


def run_tokens(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the recurrence with the decays 2 d − 1 of log d, one token after the other."""
    state, outputs = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[2]):
        factor = 2.0 * decay[:, :, t, :, None].exp() - 1.0
        state = factor * state + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append((q[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(outputs, dim=2), state


def run_chunks(product, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    decay, sign = extend_decay(decay)
    return run_signed(product, Steps(q, k, v, decay=decay, sign=sign), None)


def draw_steps(length: int, width: int, channels: int) -> list[Tensor]:
    """Draw q, k, v, and decays of which a third turn hardly anything, or all, or forget all."""
    q, k, v = (torch.randn(2, 3, length, size) for size in (6, 6, width))
    decay = 4.0 * torch.rand(2, 3, length, channels).log()
    kind = torch.randint(6, decay.shape)
    for index, special in enumerate((-1e-6, -40.0, math.log(0.5))):
        decay = decay.masked_fill(kind == index, special)
    return [q, k, v, decay]


@every_product
@pytest.mark.parametrize("length", [1, 2, 64, 65, 150])
def test_chunks_are_the_recurrence(product, width: int, channels: int, length: int) -> None:
    """In values, in the last state and in gradients, also where a decay is 0 exactly."""
    drawn = draw_steps(length, width, channels)
    results = []
    for compute in (partial(run_chunks, product), run_tokens):
        leaves = [part.clone().requires_grad_() for part in drawn]
        out, state = compute(*leaves)
        scalar = out.sin().sum() + state.cos().sum()
        # Nothing is there yet that the first token's decay could change.
        gradients = torch.autograd.grad(scalar, leaves, materialize_grads=True)
        results.append([out, state, *gradients])
    assert_same(*results)


@every_product
@pytest.mark.parametrize("special", [math.log(0.5), -1e-6, -40.0], ids=["0", "1", "-1"])
def test_any_decay_is_exact_in_float32(product, width: int, channels: int, special: float) -> None:
    """The logarithm of 0 has no gradient, and decays near 1 or −1 lose no digits over time."""
    q, k, v, decay = draw_steps(150, width, channels)
    decay = torch.where(torch.rand_like(decay) < 0.5, special, decay)
    single = [part.float().requires_grad_() for part in (q, k, v, decay)]
    if special == math.log(0.5):
        assert (1.0 + 2.0 * single[3].expm1() == 0.0).any()
    double = [part.detach().double().requires_grad_() for part in single]
    (ours, last), (expected, state) = run_chunks(product, *single), run_tokens(*double)
    torch.testing.assert_close(last.double(), state, rtol=1e-5, atol=1e-5)
    assert_exact_in_float32(ours, expected, single, double)


@every_entry
@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(key_mask=key_mask("left", 2, 70)),
        Mask(key_mask=key_mask("interior", 2, 70)),
        Mask(segment_ids=packed([1, 66, 3], 2)),
        Mask(key_mask=key_mask("interior", 2, 70), segment_ids=packed([30, 40], 2)),
    ],
    ids=["open", "left", "interior", "packed", "both"],
)
def test_forward_is_the_equation(name: str, mask: Mask) -> None:
    attention = causal(name)
    x = torch.randn(2, 70, DIM)
    signs = project_steps(attention, x).sign
    assert 0.1 < (signs < 0).double().mean() < 0.9
    sees = visible(attention, mask, 2, 70, 70)
    # What a convolution returns at padding inside a row has no meaning.
    real = 1.0 if mask.key_mask is None else mask.key_mask[..., None]
    assert_same(
        values_and_gradients(lambda x: real * attention(x, mask=mask), attention, x),
        values_and_gradients(
            lambda x: real * attention.naive(x, x, sees, torch.arange(70)[None]), attention, x
        ),
    )
    weights = attention.attention_map(x, mask=mask)
    sums = weights @ attention.values(x, mask=mask)
    assert_same(attention.project_output(sums, x), attention(x, mask=mask))


@every_entry
@pytest.mark.parametrize("chunks", [[1] * 9 + [62], [64, 1, 5, 1]], ids=str)
def test_chunks_go_on_from_a_state(name: str, chunks: list[int]) -> None:
    """A state is kept with its own sign, so that rows of a batch may change places."""
    attention = causal(name)
    x, cache = torch.randn(2, 71, DIM), attention.new_cache()
    real = key_mask("left", 2, 71)
    outputs, start = [], 0
    for part in x.split(chunks, dim=1):
        start += part.shape[1]
        outputs.append(attention(part, mask=Mask(key_mask=real[:, :start]), cache=cache))
    assert_same(torch.cat(outputs, dim=1), attention(x, mask=Mask(key_mask=real)))
    whole = attention.new_cache()
    attention(x, mask=Mask(key_mask=real), cache=whole)
    assert_same(list(cache.state), list(whole.state))


def test_signs_go_on_from_span_to_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each span is computed again in the backward pass, from the state that the one before left."""
    attention, x = causal("selective_scan"), torch.randn(2, 70, DIM)
    results = []
    for length in (16, 1024):
        monkeypatch.setattr(selective_scan, "SPAN", length)
        results.append(values_and_gradients(attention, attention, x))
    assert_same(*results)


@every_entry
def test_without_the_option_nothing_changes(name: str) -> None:
    """Decays are those of the paper, and the parameters are the same in both."""
    plain, ours = causal(name, negative_eigenvalues=False), causal(name)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, DIM)
    steps, signed = project_steps(plain, x), project_steps(ours, x)
    assert steps.sign is None
    assert_same(signed.sign * signed.decay.exp(), 2.0 * steps.decay.exp() - 1.0)
    assert_same([signed.q, signed.k, signed.v], [steps.q, steps.k, steps.v])


@every_entry
def test_signs_stay_exact_in_half_precision(name: str) -> None:
    """Signs and sums are computed in float32 whatever autocast would do."""
    with default_dtype("float32"):
        attention, x = causal(name), torch.randn(2, 150, DIM)
        steps = project_steps(attention, x)
        _, (exact, *_) = attention.recur(steps, x, TokenSpan(), ())
        with torch.autocast("cpu", torch.bfloat16):
            _, (state, *_) = attention.recur(steps, x, TokenSpan(), ())
        assert state.dtype == torch.float32 and torch.equal(state, exact)
        rough = attention.bfloat16()(x.bfloat16())
    assert rough.isfinite().all()


def test_kernels_get_positive_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    """`backend=fla` has kernels for positive decays alone."""
    monkeypatch.setattr(kernels, "missing_packages", lambda: [])
    monkeypatch.setattr(kernels, "check_inputs", lambda *inputs: None)
    naive = fla("simple_gla").naive_recurrent_simple_gla
    monkeypatch.setattr(kernels, "load_kernel", lambda operation, name: naive)
    with default_dtype("float32"):
        theirs = causal("state_space_dual", backend="fla")
        ours = causal("state_space_dual", backend="torch")
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 30, DIM)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@every_entry
def test_a_token_can_turn_the_sign_of_the_state(name: str) -> None:
    """Parity needs it; without the option all weights of a token have one sign."""
    decay = torch.tensor([-1e-12, -1e-12, -60.0, -1e-12, -60.0, -60.0])[None, None, :, None]
    ones = torch.ones(1, 1, 6, 1)
    product = decayed_product if name == "state_space_dual" else channel_scan
    written = torch.tensor([1.0, 0, 0, 0, 0, 0])[None, None, :, None]
    out, state = run_chunks(product, ones, written, ones, decay)
    assert_same(out[0, 0, :, 0], torch.tensor([1.0, 1, -1, -1, 1, -1]))
    assert state.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("name", ["log_linear", "trapezoidal_state_space"])
def test_relatives_without_it_refuse_the_option(name: str) -> None:
    with pytest.raises(UserError, match="negative_eigenvalues"):
        create_attention(name, dim=DIM, heads=4, role="causal", negative_eigenvalues=True)
