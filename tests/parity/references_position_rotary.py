"""Variants of rotary positions against transformers, by its eager attention, and x-transformers."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PhiConfig, SmolLM3Config
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.phi.modeling_phi import PhiAttention, PhiRotaryEmbedding
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention, SmolLM3RotaryEmbedding

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from tests.parity.compared import Outcome, encoded, outcome, parity
from tests.parity.references_transformers import (
    DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
    POSITIONS,
    copy_projections,
    future,
)

with warnings.catch_warnings():
    # It scripts functions, which torch is about to give up.
    warnings.simplefilter("ignore", DeprecationWarning)
    from x_transformers.x_transformers import Attention as XTransformersAttention
    from x_transformers.x_transformers import PolarEmbedding, RotaryEmbedding

WIDTH = DIM // HEADS
ORIGINAL = 6  # tokens in training, of LENGTH
SIZES = {
    "hidden_size": DIM,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "attn_implementation": "eager",
}


def grouped(name: str, *, bias: bool = False, layer: int = 0, **options: Any) -> Attention:
    """Two queries to a key, with the encoding."""
    ours = create_attention(
        "grouped_query",
        dim=DIM,
        heads=HEADS,
        kv_heads=KV_HEADS,
        role="causal",
        bias=bias,
        layer=layer,
    )
    return encoded(ours, name, **options)


def tokens() -> Tensor:
    """So large that attention is far from even: the angles then tell."""
    return torch.randn(2, LENGTH, DIM).mul(3.0).requires_grad_()


def llama(ours: Attention, **rope: Any) -> tuple[LlamaConfig, LlamaAttention]:
    """Theirs, of the length in training, with the rescaling and our projections."""
    config = LlamaConfig(
        **SIZES,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_theta": 100.0, **rope},
    )
    theirs = LlamaAttention(config, layer_idx=0)
    copy_projections(ours, theirs)
    return config, theirs


def like_llama(ours: Attention, **rope: Any) -> tuple[Outcome, Outcome]:
    config, theirs = llama(ours, **rope)
    x = tokens()
    expected, _ = theirs(x, LlamaRotaryEmbedding(config)(x, POSITIONS), future())
    return both(ours, theirs, x, expected)


def like_growing_llama(ours: Attention, **rope: Any) -> tuple[Outcome, Outcome]:
    """The last query of each length from 1 on.

    They turn all queries by the length of the whole sequence, ours each by its own.
    """
    config, theirs = llama(ours, **rope)
    x = tokens()
    rows = []
    for length in range(1, LENGTH + 1):
        part, positions = x[:, :length], POSITIONS[:, :length]
        turned = LlamaRotaryEmbedding(config)(part, positions)
        rows.append(theirs(part, turned, future()[..., :length, :length])[0][:, -1])
    return both(ours, theirs, x, torch.stack(rows, dim=1))


def both(
    ours: Attention, theirs: nn.Module, x: Tensor, expected: Tensor
) -> tuple[Outcome, Outcome]:
    return (
        outcome(ours(x), [x, ours.query.weight, ours.key.weight]),
        outcome(expected, [x, theirs.q_proj.weight, theirs.k_proj.weight]),
    )


@parity("linear_interpolation", "transformers LlamaAttention(rope_type=linear)")
def linear_interpolation() -> tuple[Outcome, Outcome]:
    ours = grouped("linear_interpolation", base=100.0, factor=2.5)
    return like_llama(ours, rope_type="linear", factor=2.5)


@parity("yarn", "transformers LlamaAttention(rope_type=yarn)")
def yarn() -> tuple[Outcome, Outcome]:
    """With a ramp whose ends lie between pairs."""
    turns = {"beta_fast": 0.5, "beta_slow": 0.1}
    ours = grouped(
        "yarn", base=100.0, factor=4.0, original_length=ORIGINAL, truncate=False, **turns
    )
    return like_llama(
        ours,
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=ORIGINAL,
        truncate=False,
        **turns,
    )


@parity("yarn", "transformers LlamaAttention(rope_type=yarn)")
def yarn_truncated() -> tuple[Outcome, Outcome]:
    """With a ramp of whole pairs, and an attention factor of its own."""
    options = {"factor": 4.0, "beta_fast": 0.5, "beta_slow": 0.1, "attention_factor": 1.5}
    ours = grouped("yarn", base=100.0, original_length=ORIGINAL, **options)
    return like_llama(ours, rope_type="yarn", original_max_position_embeddings=ORIGINAL, **options)


@parity("llama3", "transformers LlamaAttention(rope_type=llama3)")
def llama3() -> tuple[Outcome, Outcome]:
    """With pairs below, on and above the ramp."""
    options = {"factor": 3.0, "low_freq_factor": 0.05, "high_freq_factor": 0.5}
    ours = grouped("llama3", base=100.0, original_length=ORIGINAL - 1, **options)
    return like_llama(
        ours, rope_type="llama3", original_max_position_embeddings=ORIGINAL - 1, **options
    )


@parity("p_rope", "transformers LlamaAttention(rope_type=proportional)")
def p_rope() -> tuple[Outcome, Outcome]:
    ours = grouped("p_rope", base=100.0, fraction=0.8)
    return like_llama(ours, rope_type="proportional", partial_rotary_factor=0.8)


@parity("dynamic_ntk", "transformers LlamaAttention(rope_type=dynamic)")
def dynamic_ntk() -> tuple[Outcome, Outcome]:
    ours = grouped("dynamic_ntk", base=100.0, factor=2.0, original_length=ORIGINAL)
    return like_growing_llama(ours, rope_type="dynamic", factor=2.0)


@parity("longrope", "transformers LlamaAttention(rope_type=longrope)")
def longrope() -> tuple[Outcome, Outcome]:
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.0, 2.5, 4.0]}
    ours = grouped("longrope", base=100.0, factor=4.0, original_length=ORIGINAL, **factors)
    return like_growing_llama(
        ours,
        rope_type="longrope",
        factor=4.0,
        original_max_position_embeddings=ORIGINAL,
        **factors,
    )


@parity("partial_rotary", "transformers PhiAttention")
def partial_rotary() -> tuple[Outcome, Outcome]:
    ours = grouped("partial_rotary", bias=True, base=100.0, fraction=0.5)
    return like_phi(ours, rope_type="default", partial_rotary_factor=0.5)


@parity("yarn", "transformers PhiAttention(rope_type=yarn)")
def yarn_of_a_part() -> tuple[Outcome, Outcome]:
    """The factor is for the rotated channels alone."""
    options = {"factor": 4.0, "beta_fast": 0.5, "beta_slow": 0.1}
    ours = grouped("yarn", bias=True, base=100.0, fraction=0.5, original_length=ORIGINAL, **options)
    return like_phi(
        ours,
        rope_type="yarn",
        partial_rotary_factor=0.5,
        original_max_position_embeddings=ORIGINAL,
        **options,
    )


def like_phi(ours: Attention, **rope: Any) -> tuple[Outcome, Outcome]:
    config = PhiConfig(**SIZES, rope_parameters={"rope_theta": 100.0, **rope})
    theirs = PhiAttention(config, layer_idx=0)
    theirs.o_proj = theirs.dense
    copy_projections(ours, theirs)
    x = tokens()
    expected, _ = theirs(x, PhiRotaryEmbedding(config)(x, POSITIONS), future())
    return both(ours, theirs, x, expected)


@parity("rotary_every", "transformers SmolLM3Attention")
def rotary_every() -> tuple[Outcome, Outcome]:
    """Six layers of the same weights side by side, of which the third and the sixth do not turn."""
    layers = [grouped("rotary_every", layer=i, base=100.0, every=3) for i in range(6)]
    config = SmolLM3Config(
        **SIZES,
        num_hidden_layers=6,
        no_rope_layer_interval=3,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    x = tokens()
    turned = SmolLM3RotaryEmbedding(config)(x, POSITIONS)
    outputs, expected = [], []
    for i, ours in enumerate(layers):
        ours.load_state_dict(layers[0].state_dict())
        theirs = SmolLM3Attention(config, layer_idx=i)
        copy_projections(ours, theirs)
        outputs.append(ours(x))
        expected.append(theirs(x, turned, future())[0])
    return outcome(torch.stack(outputs), [x]), outcome(torch.stack(expected), [x])


def like_x_transformers(
    name: str, embedding: nn.Module, kind: str, **options: Any
) -> tuple[Outcome, Outcome]:
    """`kind` is what their attention calls the embedding; parameters of both are compared too."""
    ours = encoded(
        create_attention("multi_head", dim=DIM, heads=HEADS, role="causal"), name, **options
    )
    theirs = XTransformersAttention(DIM, dim_head=WIDTH, heads=HEADS, causal=True)
    for part, other in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
        getattr(theirs, f"to_{other}").load_state_dict(getattr(ours, part).state_dict())
    own, other = list(ours.encoding.parameters()), list(embedding.parameters())
    with torch.no_grad():
        for a, b in zip(own, other, strict=True):
            a.copy_(b)
    x = tokens()
    expected = theirs(x, **{kind: embedding(POSITIONS[0])})
    return (
        outcome(ours(x), [x, ours.key.weight, *own]),
        outcome(expected, [x, theirs.to_k.weight, *other]),
    )


@parity("rotary", "x-transformers Attention(RotaryEmbedding)")
def rotary_interleaved() -> tuple[Outcome, Outcome]:
    embedding = RotaryEmbedding(WIDTH, base=100)
    return like_x_transformers(
        "rotary", embedding, "rotary_pos_emb", base=100.0, layout="interleaved"
    )


@parity("ntk", "x-transformers Attention(RotaryEmbedding(base_rescale_factor))")
def ntk() -> tuple[Outcome, Outcome]:
    embedding = RotaryEmbedding(WIDTH, base=100, base_rescale_factor=2.5)
    return like_x_transformers(
        "ntk", embedding, "rotary_pos_emb", base=100.0, factor=2.5, layout="interleaved"
    )


@parity("xpos", "x-transformers Attention(RotaryEmbedding(use_xpos))")
def xpos() -> tuple[Outcome, Outcome]:
    """Their powers count from the middle of the sequence, ours from its beginning."""
    embedding = RotaryEmbedding(WIDTH, base=100, use_xpos=True, scale_base=8)
    return like_x_transformers(
        "xpos", embedding, "rotary_pos_emb", base=100.0, scale_base=8.0, layout="interleaved"
    )


@parity("polar", "x-transformers Attention(PolarEmbedding)")
def polar() -> tuple[Outcome, Outcome]:
    """With phases inside and outside of their bounds."""
    embedding = PolarEmbedding(WIDTH, HEADS, base=100)
    nn.init.uniform_(embedding.learned_bias, -7.0, 1.0)
    return like_x_transformers("polar", embedding, "polar_pos_emb", base=100.0)
