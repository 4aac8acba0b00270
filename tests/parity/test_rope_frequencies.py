"""Frequencies and factors of rotary variants against those of transformers, option by option."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from attention_zoo import create_position
from attention_zoo.position.rotary.scaled import GrowingRotary

HEAD_DIM, ORIGINAL = 64, 128
LONGROPE = {"short_factor": [1.0, 1.5] * 8, "long_factor": [2.0 + 0.5 * i for i in range(16)]}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("linear_interpolation", "linear", {"factor": 2.5}),
    ("llama3", "llama3", {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 6.0}),
    ("yarn", "yarn", {"factor": 6.0}),
    ("yarn", "yarn", {"factor": 6.0, "beta_fast": 8.0, "beta_slow": 0.25}),
    ("yarn", "yarn", {"factor": 6.0, "truncate": False}),
    ("yarn", "yarn", {"factor": 6.0, "attention_factor": 1.3}),
    ("yarn", "yarn", {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.2}),
    ("dynamic_ntk", "dynamic", {"factor": 3.0}),
    ("longrope", "longrope", {"factor": 4.0, **LONGROPE}),
]


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("name", "rope_type", "options"), CASES)
def test_frequencies_are_those_of_transformers(
    name: str, rope_type: str, options: dict[str, Any], fraction: float
) -> None:
    """Of a whole head and of a part, within the length in training and beyond."""
    pairs = int(fraction * HEAD_DIM) // 2
    options = {k: (v * 4)[:pairs] if isinstance(v, list) else v for k, v in options.items()}
    lengths = {} if name == "linear_interpolation" else {"original_length": ORIGINAL}
    sizes = {"dim": 256, "heads": 4, "head_dim": HEAD_DIM, "role": "causal"}
    ours = create_position(name, **sizes, base=5000.0, fraction=fraction, **lengths, **options)
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=ORIGINAL,
        rope_parameters={
            "rope_type": rope_type,
            "rope_theta": 5000.0,
            "partial_rotary_factor": fraction,
            "original_max_position_embeddings": ORIGINAL,
            **options,
        },
    )
    x = torch.zeros(1)
    for length in (ORIGINAL, 3 * ORIGINAL):
        expected, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), length)
        if isinstance(ours, GrowingRotary):
            frequencies = ours.frequencies_at(ours.stage(torch.tensor(length)), x)
        else:
            frequencies = ours.frequencies(x)
        torch.testing.assert_close(frequencies.float(), expected, rtol=1e-5, atol=0.0)
        # Theirs of mscale_all_dim is for all channels, and so is not in the cosines and sines.
        assert ours.magnitude / ours.plain_magnitude == pytest.approx(factor)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.29, 0.5, 0.75, 1.0])
def test_frequencies_of_p_rope_are_the_proportional_ones(fraction: float) -> None:
    sizes = {"dim": 256, "heads": 4, "head_dim": HEAD_DIM, "role": "causal"}
    ours = create_position("p_rope", **sizes, base=5000.0, fraction=fraction)
    rope = {
        "rope_type": "proportional",
        "rope_theta": 5000.0,
        "partial_rotary_factor": fraction,
    }
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["proportional"](config, torch.device("cpu"))
    torch.testing.assert_close(ours.frequencies(torch.zeros(1)).float(), expected)
