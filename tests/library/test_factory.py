"""Building entries by name, and what is said of options that cannot be."""

import pytest

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.zoo import Role

SIZES = {"dim": 16, "heads": 4, "head_dim": 4}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("multi_head", {}, "needs the option 'heads'"),
        ("multi_head", {"heads": 4, "headz": 4}, "has no option 'headz'. Its options: .*head_dim"),
        ("multi_head", {"heads": 3}, "dim must be a multiple of heads, got dim=16, heads=3"),
        ("multi_head", {"heads": 0}, "heads must be"),
        ("multi_head", {"heads": 4, "dropout": 1.0}, "dropout must be .* got 1.0"),
        ("multi_head", {"heads": 4, "backend": "sdp"}, "Did you mean sdpa"),
        ("grouped_query", {"heads": 4, "kv_heads": 3}, "multiple of kv_heads, got heads=4, kv_h"),
        ("sliding_window", {"heads": 4, "window": 0}, "window must be at least 1"),
        ("sliding_window", {"heads": 4, "window": None}, "window must be a whole number, got None"),
        ("multihead", {"heads": 4}, "Did you mean multi_head"),
    ],
)
def test_wrong_options_of_an_attention(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_attention(name, dim=16, role="causal", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("learned", {}, "needs the option 'max_length'"),
        ("learned", {"max_length": 0}, "max_length must be at least 1, got 0"),
        ("rotary", {"layout": "half"}, "layout must be one of half_split, interleaved, got 'half'"),
        ("rotary", {"head_dim": 5}, "even head width, got 5"),
        ("sinusoidal", {"dim": 15}, "even dim, got 15"),
        ("t5_bias", {"buckets": 1}, "at least 2 buckets"),
        ("t5_bias", {"max_distance": 16}, "max_distance above 16"),
    ],
)
def test_wrong_options_of_an_encoding(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_position(name, role="causal", **SIZES | options)


@pytest.mark.parametrize("role", ["causal", "global", "cross"])
def test_the_width_of_heads_can_be_chosen(role: Role) -> None:
    attention = create_attention("multi_head", dim=16, heads=3, head_dim=6, role=role)
    assert attention.query.weight.shape == (18, 16)
    assert attention.output.weight.shape == (16, 18)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(Unsupported, match="cannot be sideways attention; it can be causal"):
        create_attention("multi_head", dim=16, heads=4, role="sideways")  # type: ignore[arg-type]
