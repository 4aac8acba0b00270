"""The entries whose state a delta rule updates."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import Unsupported, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.delta_rule import delta_rule
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import unit_vectors
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.cases import mark_exhaustive
from tests.conformance.numbers import assert_same, default_dtype

DIM, HEADS = 16, 4
GATED = ["gated_delta", "kimi_delta"]
PRODUCTS = ["delta_product", "gated_delta_product"]
INNER_LOOPS = ["ttt_linear", "ttt_mlp", "titans"]
RECURRENT = ["delta", *GATED, *PRODUCTS, "rwkv7", "mesa", *INNER_LOOPS]


def attention(name: str) -> Attention:
    return create_attention(name, dim=DIM, heads=HEADS, role="causal")


def project_steps(ours: Attention, x: Tensor) -> Steps:
    positions = torch.arange(x.shape[1])[None]
    return ours.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


def draw_steps(length: int, *, decay: Tensor | None = None, width: int = 4) -> Steps:
    q, k, v, erase = (torch.randn(2, 3, length, width) for _ in range(4))
    return Steps(q, k, v, unit_vectors(erase), write=0.5 * unit_vectors(erase), decay=decay)


def run_tokens(steps: Steps) -> Tensor:
    """Compute the recurrence of `Steps`, one token after the other."""
    q, k, v, erase, write, decay, *_ = steps
    write = k if write is None else write
    state, outputs = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), []
    for t in range(q.shape[2]):
        if decay is not None:
            state = state * decay[:, :, t, :, None].exp()
        read = (state * erase[:, :, t, :, None]).sum(dim=-2, keepdim=True)
        state = state - write[:, :, t, :, None] * read
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((state * q[:, :, t, :, None]).sum(dim=-2))
    return torch.stack(outputs, dim=2)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("channels", [0, 1, 4], ids=["none", "head", "channel"])
def test_chunks_are_the_delta_rule(length: int, channels: int) -> None:
    decay = -torch.rand(2, 3, length, channels) if channels else None
    general = draw_steps(length, decay=decay)
    for steps in (general, general._replace(write=None)):
        assert_same(delta_rule(steps)[0], run_tokens(steps))


def test_a_key_that_is_written_again_holds_the_last_value_alone() -> None:
    """Sums of outer products, as linear attention has them, would give both values."""
    k = torch.eye(4)[[0, 1, 0]].expand(1, 1, 3, 4)
    v = torch.randn(1, 1, 3, 4)
    assert_same(delta_rule(Steps(k, k, v, erase=k))[0][:, :, 2], v[:, :, 2])
    weights = delta_rule(Steps(k, k, v, erase=k).use_unit_values())[0]
    assert_same(weights[0, 0, 2], torch.tensor([0.0, 0.0, 1.0]))


def test_decay_comes_before_the_delta_rule() -> None:
    """A key reads a state that has decayed: otherwise half of the old value would remain."""
    k = torch.eye(4)[[0, 0]].expand(1, 1, 2, 4)
    v = torch.randn(1, 1, 2, 4)
    halved = torch.full((1, 1, 2, 1), 0.5).log()
    assert_same(delta_rule(Steps(k, k, v, erase=k, decay=halved))[0], v)


@pytest.mark.parametrize("channels", [1, 8], ids=["head", "channel"])
def test_strong_decays_are_exact_in_float32(channels: int) -> None:
    """There is neither exp(+large), nor a weak decay as the difference of large sums."""
    decay = -20.0 * (torch.rand(2, 3, 200, channels) < 0.5) - 0.01 * torch.rand(2, 3, 200, channels)
    decay[:, :, 100:] = -20.0
    exact = draw_steps(200, decay=decay, width=8)
    expected = run_tokens(exact)
    with default_dtype("float32"):
        rough = Steps(*(part.float().requires_grad_() for part in exact[:6]))
        out, _ = delta_rule(rough)
        gradients = torch.autograd.grad(out.sin().sum(), rough[:6])
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("channels", [0, 1, 4], ids=["none", "head", "channel"])
def test_padding_touches_neither_the_state_nor_its_decay(channels: int) -> None:
    """The result is that of the real tokens alone."""
    steps = draw_steps(70, decay=-torch.rand(2, 3, 70, channels) if channels else None)
    real = (torch.rand(70) < 0.7).expand(2, -1)
    real_steps = Steps(*(None if part is None else part[:, :, real[0]] for part in steps))
    out, state = delta_rule(steps.apply_mask(TokenSpan(Mask(key_mask=real))))
    expected, last = delta_rule(real_steps)
    assert_same(out[:, :, real[0]], expected)
    assert_same(state, last)


@pytest.mark.parametrize("channels", [0, 1, 4], ids=["none", "head", "channel"])
def test_a_segment_starts_anew_with_finite_gradients(channels: int) -> None:
    steps = draw_steps(70, decay=-torch.rand(2, 3, 70, channels) if channels else None)
    steps = Steps(*(None if part is None else part.requires_grad_() for part in steps))
    segment_ids = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 30, 39])).expand(2, -1)
    out, _ = delta_rule(steps.apply_mask(TokenSpan(Mask(segment_ids=segment_ids))))
    last = Steps(*(None if part is None else part[:, :, 31:] for part in steps))
    assert_same(out[:, :, 31:], delta_rule(last)[0])
    leaves = [part for part in steps if part is not None]
    gradients = torch.autograd.grad(out.sin().sum(), leaves, retain_graph=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["delta", *GATED])
def test_queries_and_keys_are_unit_vectors(name: str) -> None:
    """Their length after SiLU does not matter, and zeros do not become nan."""
    ours = attention(name)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.abs_()
    for scale in (1.0, 100.0):
        steps = project_steps(ours, scale * torch.rand(2, 9, DIM))
        lengths = [part.norm(dim=-1) for part in (steps.q, steps.erase)]
        expected = [torch.full_like(lengths[0], ours.head_dim**-0.5), torch.ones_like(lengths[1])]
        torch.testing.assert_close(lengths, expected, rtol=1e-4, atol=0.0)
    steps = project_steps(ours, torch.zeros(1, 2, DIM))
    assert all(part.isfinite().all() for part in steps if part is not None)


@pytest.mark.parametrize("name", ["delta", *GATED])
def test_negative_eigenvalues_are_those_of_twice_the_rate(name: str) -> None:
    """A rate of 2 reflects the state at the key; half of it only erases."""
    ours = create_attention(name, dim=DIM, heads=HEADS, role="causal", negative_eigenvalues=True)
    plain = attention(name)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, DIM)
    steps, plain_steps = project_steps(ours, x), project_steps(plain, x)
    assert_same(steps.k, 2.0 * plain_steps.k)
    assert_same(steps.erase, plain_steps.erase)
    if steps.rate is not None:  # Kernels get it.
        assert_same(steps.rate, 2.0 * plain_steps.rate)
    visible = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, -1, -1)
    assert_same(ours(x), ours.naive(x, x, visible, torch.arange(9)[None]))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_one_is_the_delta_rule(name: str) -> None:
    """With one key for each state, and the rate below 1."""
    options = {"num_householder": 1, "negative_eigenvalues": False}
    ours = create_attention(name, dim=DIM, heads=HEADS, role="causal", **options)
    single = attention(name.removesuffix("_product"))
    single.load_state_dict(ours.state_dict())
    single.norm.eps = ours.norm.eps
    x = torch.randn(2, 9, DIM)
    assert_same(ours(x), single(x))


def test_a_decay_of_a_product_comes_once_for_each_token() -> None:
    """Before the first key, not before each."""
    ours = attention("gated_delta_product")
    x = torch.randn(1, 1, DIM)
    steps = ours.unroll_steps(project_steps(ours, x))
    assert steps.decay.shape == (1, HEADS, 2, 1)
    assert (steps.decay[:, :, 0] < 0).all() and (steps.decay[:, :, 1] == 0).all()


def test_a_product_can_rotate() -> None:
    """Two reflections are a rotation, whose eigenvalues are complex; one has real ones only."""
    ours = attention("delta_product")
    with torch.no_grad():
        ours.rate.bias.fill_(50.0)
    x, cache = torch.randn(1, 2, DIM), ours.new_cache()
    ours(x[:, :1], cache=cache)
    before = cache.state[0]
    with torch.no_grad():
        ours.value.weight.zero_()
    ours(x[:, 1:], cache=cache)
    k = ours.unroll_steps(project_steps(ours, x)).erase[:, :, 2:]
    first, second = (
        torch.eye(DIM // HEADS) - 2 * part[..., :, None] * part[..., None, :]
        for part in k.unbind(dim=2)
    )
    assert_same(cache.state[0], second @ first @ before)
    eigenvalues = torch.linalg.eigvals(second @ first)
    assert (eigenvalues.imag.abs().amax(dim=-1) > 0.01).all()


@pytest.mark.parametrize("name", GATED)
def test_the_gate_is_computed_in_log_space(name: str) -> None:
    """A step so large that its decay is zero has a finite logarithm, and gradients."""
    ours = attention(name)
    with torch.no_grad():
        ours.step_bias.fill_(1000.0)
    x = torch.randn(2, 9, DIM)
    decay = project_steps(ours, x).decay
    assert (decay < -500).all() and decay.isfinite().all()
    ours(x).sin().sum().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_every_channel_of_a_kimi_key_decays_by_itself() -> None:
    """The channels of the gated delta rule decay alike."""
    ours = attention("kimi_delta")
    x = torch.randn(2, 9, DIM)
    decay = project_steps(ours, x).decay
    assert decay.shape == (2, HEADS, 9, DIM // HEADS)
    with torch.no_grad():
        ours.step_bias[5] += 1.0
    changed = (project_steps(ours, x).decay != decay).all(dim=2)
    # The sixth channel is the second of the second head.
    assert changed.nonzero().tolist() == [[0, 1, 1], [1, 1, 1]]
    assert project_steps(attention("gated_delta"), x).decay.shape[-1] == 1


def test_every_token_transforms_the_cached_keys() -> None:
    """A token multiplies them by its Householder matrix; padding changes nothing."""
    ours = attention("path")
    x, cache = torch.randn(1, 4, DIM), ours.new_cache()
    ours(x[:, :3], cache=cache)
    before = cache.state[0]
    steps = project_steps(ours, x)
    w, write = steps.erase[:, :, 3, :, None], steps.write[:, :, 3, :, None]
    key_mask = torch.tensor([[True, True, True, False]])
    ours(x[:, 3:], cache=cache, mask=Mask(key_mask=key_mask))
    assert_same(cache.state[0][:, :, :3], before)
    cache = ours.new_cache()
    ours(x[:, :3], cache=cache)
    ours(x[:, 3:], cache=cache)
    householder = torch.eye(DIM // HEADS) - w @ write.transpose(-2, -1)
    assert_same(cache.state[0][:, :, :3], before @ householder)
    assert not torch.allclose(cache.state[0][:, :, :3], before)


def test_tokens_after_the_key_up_to_the_query_transform_the_key() -> None:
    """The product goes from j + 1 to i: once for the key before the query, not for its own."""
    ours = attention("path")
    x = torch.randn(1, 3, DIM)
    q, k, _, w, write, *_ = project_steps(ours, x)
    householder = torch.eye(DIM // HEADS) - write[..., :, None] * w[..., None, :]
    scores = [
        (q[:, :, 2] * k[:, :, 2]).sum(-1),
        torch.einsum("bhc,bhcd,bhd->bh", q[:, :, 2], householder[:, :, 2], k[:, :, 1]),
        torch.einsum(
            "bhc,bhcd,bhde,bhe->bh",
            q[:, :, 2],
            householder[:, :, 2],
            householder[:, :, 1],
            k[:, :, 0],
        ),
    ]
    expected = torch.stack(scores[::-1], dim=-1).softmax(dim=-1)
    assert_same(ours.attention_map(x)[:, :, 2], expected)


def test_rwkv7_erases_what_the_state_held_before_the_decay() -> None:
    """Its transition is the difference of a diagonal and a product, not a product of the two."""
    ours = attention("rwkv7")
    x, cache = torch.randn(1, 3, DIM), ours.new_cache()
    ours(x[:, :2], cache=cache)
    before = cache.state[0]
    ours(x[:, 2:], cache=cache)
    steps = [part[:, :, 2] for part in project_steps(ours, x) if part is not None]
    _, k, v, erase, write, decay = steps
    removed = erase * decay.exp()
    torch.testing.assert_close(removed.norm(dim=-1), torch.ones(1, HEADS), rtol=1e-4, atol=0.0)
    transition = torch.diag_embed(decay.exp()) - write[..., :, None] * removed[..., None, :]
    assert_same(cache.state[0], transition @ before + k[..., :, None] * v[..., None, :])


def test_rwkv7_never_decays_by_more_than_its_bound() -> None:
    """The bound is exp(−exp(−½)); the exponent that undoes the decay relies on it."""
    ours = attention("rwkv7")
    decay = project_steps(ours, 1e4 * torch.randn(1, 9, DIM)).decay
    assert decay.min() >= -0.6065306597126335 and decay.max() <= 0


def test_rwkv7_has_negative_eigenvalues_without_an_option() -> None:
    """Where it decays most and erases all, one of them is exp(−exp(−½)) − 1; none is lower."""
    ours = attention("rwkv7")
    with torch.no_grad():
        ours.decay[-1].bias.fill_(50.0)
        ours.rate[-1].bias.fill_(50.0)
    _, _, _, erase, write, decay, *_ = project_steps(ours, torch.randn(1, 9, DIM))
    removed = erase * decay.exp()
    transition = torch.diag_embed(decay.exp()) - write[..., :, None] * removed[..., None, :]
    lowest = torch.linalg.eigvals(transition).real.min()
    torch.testing.assert_close(lowest.item(), -0.45476, rtol=1e-3, atol=0.0)


def test_the_token_before_is_in_the_cache_of_rwkv7() -> None:
    ours = attention("rwkv7")
    x, cache = torch.randn(1, 3, DIM), ours.new_cache()
    ours(x, cache=cache)
    assert_same(cache.state[1], x[:, 2:].transpose(1, 2))


def test_mesa_solves_as_often_as_it_says() -> None:
    """The number of iterations is fixed, so that decoding gives the same as one pass."""
    x, exact = torch.randn(2, 9, DIM), attention("mesa")
    for iterations in (2, DIM // HEADS):
        ours = create_attention("mesa", dim=DIM, heads=HEADS, role="causal", iterations=iterations)
        ours.load_state_dict(exact.state_dict())
        cache = ours.new_cache()
        pieces = [ours(x[:, t : t + 1], cache=cache) for t in range(9)]
        assert_same(torch.cat(pieces, dim=1), ours(x))
        assert torch.allclose(ours(x), exact(x), rtol=1e-9) == (iterations > 2)


def test_mesa_solves_for_what_is_zero() -> None:
    """A system that is solved before the last iteration does not give 0 / 0."""
    ours = attention("mesa")
    x = torch.zeros(1, 3, DIM, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x).sum(), x)
    assert (ours(x) == 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_path_takes_no_other_encoding(position: str) -> None:
    with pytest.raises(Unsupported, match=position):
        create_attention("path", dim=DIM, heads=HEADS, role="causal", position=position)


@pytest.mark.parametrize("name", RECURRENT)
def test_the_state_is_float32_under_autocast(name: str) -> None:
    with default_dtype("float32"):
        ours = attention(name)
        cache = ours.new_cache()
        with torch.autocast("cpu", torch.bfloat16):
            ours(torch.randn(2, 9, DIM), cache=cache)
    assert cache.state[0].dtype == torch.float32


class NumberCounter(TorchDispatchMode):
    """Count the numbers that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.total += sum(part.numel() for part in tree_leaves(out) if isinstance(part, Tensor))
        return out


@pytest.mark.parametrize("name", mark_exhaustive((name, "delta") for name in RECURRENT))
def test_work_grows_with_the_length(name: str) -> None:
    """Eight times the tokens are eight times the products and the numbers, not 64 times.

    An index into all chunks, say, has a gradient as large as all of them.
    """
    ours, products, numbers = attention(name), [], []
    for length in (256, 2048):
        with FlopCounterMode(display=False) as counter:
            ours(torch.randn(1, length, DIM)).sum().backward()
        products.append(counter.get_total_flops())
        with NumberCounter() as counter:
            ours(torch.randn(1, length, DIM)).sum().backward()
        numbers.append(counter.total)
    assert products[1] < 8.3 * products[0]
    assert numbers[1] < 8.3 * numbers[0]
