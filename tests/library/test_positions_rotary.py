"""Each variant of rotary positions against its formula, in plain loops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from attention_zoo import UserError
from tests.conformance.numbers import assert_same
from tests.library.test_positions import POSITIONS, encoding

WIDTH, BASE = 8, 100.0
PAIRS = {
    "half_split": [(0, 4), (1, 5), (2, 6), (3, 7)],
    "interleaved": [(0, 1), (2, 3), (4, 5), (6, 7)],
}
LENGTH = 12  # in training


def plain(i: int, width: int = WIDTH) -> float:
    """ω_i of Su et al. 2021."""
    return BASE ** (-2 * i / width)


def interpolated(i: int) -> float:
    """Chen et al. 2023: position t becomes t·L/(s·L)."""
    return plain(i) / 3.0


def of_larger_base(i: int, factor: float = 3.0) -> float:
    """bloc97: the base becomes b·s^(d/(d − 2))."""
    return float((BASE * factor ** (WIDTH / (WIDTH - 2))) ** (-2 * i / WIDTH))


def by_parts(i: int) -> float:
    """Peng et al. 2023, with the ramp of the authors' code.

    Its ends are the pairs that make so many turns: d/2·log_b(L/2πβ), moved to whole numbers.
    """
    low, high = (
        WIDTH * math.log(LENGTH / (turns * 2 * math.pi)) / (2 * math.log(BASE))
        for turns in (1.5, 0.05)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), WIDTH - 1)
    assert low < high
    ramp = min(max((i - low) / (high - low), 0.0), 1.0)
    return (1 - ramp) * plain(i) + ramp * plain(i) / 3.0


def by_wavelength(i: int) -> float:
    """As the code of Llama 3.1 says it, in wavelengths."""
    low, high = 0.1, 1.0
    wavelength = 2 * math.pi / plain(i)
    if wavelength < LENGTH / high:
        return plain(i)
    if wavelength > LENGTH / low:
        return plain(i) / 3.0
    smooth = (LENGTH / wavelength - low) / (high - low)
    return (1 - smooth) * plain(i) / 3.0 + smooth * plain(i)


RESCALINGS: dict[str, tuple[dict[str, Any], Callable[[int], float], float]] = {
    "linear_interpolation": ({}, interpolated, 1.0),
    "ntk": ({}, of_larger_base, 1.0),
    "yarn": (
        {"original_length": LENGTH, "beta_fast": 1.5, "beta_slow": 0.05},
        by_parts,
        0.1 * math.log(3.0) + 1.0,
    ),
    "llama3": (
        {"original_length": LENGTH, "low_freq_factor": 0.1, "high_freq_factor": 1.0},
        by_wavelength,
        1.0,
    ),
}


def turned(x: Tensor, place: int, frequencies: list[float], pairs: list[tuple[int, int]]) -> Tensor:
    """One vector, pair by pair; what is in no pair stays."""
    out = x.clone()
    for (first, second), frequency in zip(pairs, frequencies, strict=True):
        cos, sin = math.cos(place * frequency), math.sin(place * frequency)
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[second] * cos + x[first] * sin
    return out


def heads() -> tuple[Tensor, Tensor]:
    """Queries, and keys of fewer heads."""
    return torch.randn(2, 4, 5, WIDTH), torch.randn(2, 2, 5, WIDTH)


def assert_turned(ours: Tensor, x: Tensor, each: Callable[[Tensor, int], Tensor]) -> None:
    """Each vector of x [b h t c] at its position."""
    assert ours.shape[:3] == x.shape[:3]
    for row, head, column in torch.cartesian_prod(*map(torch.arange, x.shape[:3])):
        expected = each(x[row, head, column], int(POSITIONS[row, column]))
        assert_same(ours[row, head, column], expected)


@pytest.mark.parametrize("layout", list(PAIRS))
@pytest.mark.parametrize("name", list(RESCALINGS))
def test_a_rescaling_has_the_frequencies_of_its_paper(name: str, layout: str) -> None:
    options, frequency, magnitude = RESCALINGS[name]
    scaled = encoding(name, head_dim=WIDTH, base=BASE, layout=layout, factor=3.0, **options)
    frequencies = [frequency(i) for i in range(WIDTH // 2)]
    assert frequencies != [plain(i) for i in range(WIDTH // 2)]
    q, k = heads()
    for x, ours in zip((q, k), scaled.rotate(q, k, POSITIONS), strict=True):
        assert_turned(ours, magnitude * x, lambda x, t: turned(x, t, frequencies, PAIRS[layout]))


def test_yarn_can_leave_the_ramp_between_pairs() -> None:
    """Its ends as they are; and a step, where training was so short that there is no ramp."""
    yarn = encoding("yarn", head_dim=WIDTH, base=BASE, original_length=LENGTH, truncate=False,
                    beta_fast=1.5, beta_slow=0.05)  # fmt: skip
    low, high = (
        WIDTH / 2 * math.log(LENGTH / turns / (2 * math.pi), BASE) for turns in (1.5, 0.05)
    )
    assert 0 < low < 1 < 3 < high < WIDTH - 1
    for i, ours in enumerate(yarn.frequencies(torch.zeros(1)).tolist()):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        assert ours == pytest.approx(plain(i) * (1 - ramp + ramp / 4.0))
    short = encoding("yarn", head_dim=WIDTH, base=BASE, original_length=2, truncate=False)
    expected = [plain(0), *(plain(i) / 4.0 for i in (1, 2, 3))]
    assert short.frequencies(torch.zeros(1)).tolist() == pytest.approx(expected)


def of_length(n: int) -> list[float]:
    """emozilla: the factor of NTK is s·n/L − (s − 1), from L tokens on."""
    factor = 3.0 * max(n, LENGTH) / LENGTH - (3.0 - 1.0)
    return [of_larger_base(i, factor) for i in range(WIDTH // 2)]


def short_or_long(n: int) -> list[float]:
    factors = [1.0, 2.0, 2.5, 3.0] if n > LENGTH else [1.0, 1.0, 1.1, 1.2]
    return [plain(i) / factor for i, factor in enumerate(factors)]


GROWING: dict[str, tuple[dict[str, Any], Callable[[int], list[float]], float]] = {
    "dynamic_ntk": ({}, of_length, 1.0),
    "longrope": (
        {"short_factor": [1.0, 1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 2.5, 3.0]},
        short_or_long,
        math.sqrt(1 + math.log(3.0) / math.log(LENGTH)),
    ),
}


@pytest.mark.parametrize("layout", list(PAIRS))
@pytest.mark.parametrize("name", list(GROWING))
def test_every_query_turns_its_keys_by_its_own_length(name: str, layout: str) -> None:
    """Of each row, whatever the positions of the other."""
    options, frequencies, magnitude = GROWING[name]
    options = options | {"factor": 3.0, "original_length": LENGTH}
    growing = encoding(name, head_dim=WIDTH, base=BASE, layout=layout, **options)
    q, k = heads()
    assert all(map(torch.equal, growing.rotate(q, k, POSITIONS), (q, k)))
    runs = growing.length_spans(POSITIONS)
    assert [i for run in runs for i in range(5)[run]] == list(range(5))
    for run in runs:
        positions = POSITIONS[:, run], POSITIONS[:, : run.stop]
        ours = growing.rotate_by_length(q[:, :, run], k[:, :, : run.stop], *positions)
        for row, column in torch.cartesian_prod(torch.arange(2), torch.arange(5)[run]).tolist():
            own = frequencies(int(POSITIONS[row, column]) + 1)
            for head in range(4):
                query = magnitude * q[row, head, column]
                expected = turned(query, int(POSITIONS[row, column]), own, PAIRS[layout])
                assert_same(ours[0][row, head, column - run.start], expected)
            for head, key in torch.cartesian_prod(torch.arange(2), torch.arange(run.stop)):
                expected = turned(
                    magnitude * k[row, head, key], int(POSITIONS[row, key]), own, PAIRS[layout]
                )
                assert_same(ours[1][row, head, key], expected)


def test_the_long_factors_of_longrope_are_those_of_ntk_unless_given() -> None:
    options = {"head_dim": WIDTH, "base": BASE, "factor": 3.0}
    growing = encoding("longrope", original_length=LENGTH, **options)
    x = torch.zeros(1)
    for long, expected in ((False, plain), (True, of_larger_base)):
        ours = growing.frequencies_at(torch.tensor(long), x)
        assert ours.tolist() == pytest.approx([expected(i) for i in range(WIDTH // 2)])


@pytest.mark.parametrize(("fraction", "width"), [(0.25, 2), (0.5, 4), (0.8, 6), (1.0, 8)])
def test_partial_rotary_turns_the_first_channels(fraction: float, width: int) -> None:
    partial = encoding("partial_rotary", head_dim=WIDTH, base=BASE, fraction=fraction)
    frequencies = [plain(i, width) for i in range(width // 2)]
    pairs = [(i, i + width // 2) for i in range(width // 2)]
    q, k = heads()
    for x, ours in zip((q, k), partial.rotate(q, k, POSITIONS), strict=True):
        assert_turned(ours, x, lambda x, t: turned(x, t, frequencies, pairs))


@pytest.mark.parametrize("layout", list(PAIRS))
def test_xpos_scales_what_it_turns(layout: str) -> None:
    """ζ_i = (2i/d + 0.4)/(1 + 0.4); q by ζ^(t/B), k by ζ^(−s/B)."""
    xpos = encoding("xpos", head_dim=WIDTH, base=BASE, layout=layout, scale_base=40.0)
    frequencies = [plain(i) for i in range(WIDTH // 2)]

    def scaled(sign: int) -> Callable[[Tensor, int], Tensor]:
        def each(x: Tensor, place: int) -> Tensor:
            out = turned(x, place, frequencies, PAIRS[layout])
            for i, pair in enumerate(PAIRS[layout]):
                for channel in pair:
                    out[channel] *= ((2 * i / WIDTH + 0.4) / 1.4) ** (sign * place / 40.0)
            return out

        return each

    q, k = heads()
    ours = xpos.rotate(q, k, POSITIONS)
    assert_turned(ours[0], q, scaled(1))
    assert_turned(ours[1], k, scaled(-1))


def test_polar_scores_are_those_of_the_paper() -> None:
    """Σ_c softplus(q_c)·softplus(k_c)·cos((s − t)·θ_c + δ_c), θ_c = b^(−c/d), δ in [−2π, 0]."""
    polar = encoding("polar", head_dim=WIDTH, base=BASE)
    torch.nn.init.uniform_(polar.phase, -8.0, 2.0)
    q, k = heads()
    ours_q, ours_k = polar.rotate(q, k, POSITIONS)
    assert ours_q.shape[-1] == ours_k.shape[-1] == 2 * WIDTH
    for row, head, i, j in torch.cartesian_prod(*map(torch.arange, (2, 4, 5, 5))).tolist():
        # The first two heads of queries share the first head of keys.
        query, key = q[row, head, i], k[row, head // 2, j]
        expected = torch.zeros(())
        for c in range(WIDTH):
            bias = min(max(polar.phase[head, 0, c].item(), -2 * math.pi), 0.0)
            angle = int(POSITIONS[row, j] - POSITIONS[row, i]) * BASE ** (-c / WIDTH) + bias
            expected += softplus(query[c]) * softplus(key[c]) * math.cos(angle)
        assert_same(ours_q[row, head, i] @ ours_k[row, head // 2, j], expected)


@pytest.mark.parametrize("every", [2, 4])
def test_every_nth_layer_is_not_turned(every: int) -> None:
    q, k = heads()
    rotary = encoding("rotary", head_dim=WIDTH).rotate(q, k, POSITIONS)
    for layer in range(9):
        ours = encoding("rotary_every", head_dim=WIDTH, layer=layer, every=every)
        expected = (q, k) if layer % every == every - 1 else rotary
        assert all(map(torch.equal, ours.rotate(q, k, POSITIONS), expected))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rotary", {"base": 1.0}, "base must be above 1, got 1.0"),
        ("partial_rotary", {"fraction": 0.0}, "fraction must be above 0 and at most 1, got 0.0"),
        ("xpos", {"scale_base": 0}, "scale_base must be above 0 tokens, got 0"),
        ("ntk", {"factor": 0.5}, "factor must be at least 1, got 0.5"),
        ("dynamic_ntk", {"original_length": 1}, "original_length must be at least 2 tokens, got 1"),
        ("yarn", {"beta_fast": 1, "beta_slow": 2}, "beta_fast must be above beta_slow, and both"),
        ("yarn", {"attention_factor": 0.0}, "attention_factor must be above 0, got 0.0"),
        ("yarn", {"mscale": 1.0}, "needs both mscale and mscale_all_dim, above 0, or neither"),
        ("yarn", {"mscale": 1.0, "mscale_all_dim": 0.0}, "mscale_all_dim, above 0, or neither"),
        (
            "yarn",
            {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 2.0},
            "takes either an attention_factor or mscale and mscale_all_dim",
        ),
        ("p_rope", {"fraction": 0.0}, "fraction must be above 0 and at most 1, got 0.0"),
        ("ntk", {"fraction": 0.0}, "fraction must be above 0 and at most 1, got 0.0"),
        ("llama3", {"low_freq_factor": 4.0}, "high_freq_factor must be above low_freq_factor"),
        ("longrope", {"short_factor": [1.0]}, "short_factor must be a list of 3 positive numbers"),
        ("longrope", {"long_factor": [1, 0, 1]}, "long_factor must be a list of 3 positive"),
        ("fope", {"gain": -1.0}, "gain must be at least 0, got -1.0"),
        ("axial_rotary", {"head_dim": 8, "grid_width": 0}, "grid_width must be at least 1, got 0"),
        ("multi_axis_rotary", {"grid_height": 0}, "grid_height must be at least 1, got 0"),
        ("multi_axis_rotary", {"sections": [1, 1]}, "three numbers of pairs that make 3 together"),
        ("multi_axis_rotary", {"sections": [1, 1, 2]}, r"make 3 together.*got \[1, 1, 2\]"),
        ("multi_axis_rotary", {"sections": [4, -1, 0]}, "three numbers of pairs that make 3"),
        ("rotary_every", {"every": 1}, "every must be at least 2 layers, got 1"),
        *(
            (name, {"original_length": None}, f"position={name} needs original_length: the length")
            for name in ("dynamic_ntk", "yarn", "llama3", "longrope", "fope")
        ),
    ],
)
def test_a_wrong_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoding(name, **options)


@pytest.mark.parametrize("name", ["rotary", "yarn", "xpos"])
def test_an_odd_width_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"position={name} rotates pairs .* even head width, got 7"):
        encoding(name, head_dim=7)
    assert encoding("partial_rotary", head_dim=7).width == 2
