"""Decoders with recurrent layers."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers import (
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.parity.models import (
    DIM,
    HEADS,
    LAYERS,
    SIZES,
    WeightMap,
    Weights,
    named_model,
)
from tests.parity.models_llama import (
    ATTENTION,
    DECODER,
    LAYER,
    LLAMA,
    QK_NORM,
    THEIRS,
    UNTIED,
)
from tests.parity.models_mixed import FEED_FORWARD, LLAMA4, rows


def first_of(*sources: Callable[[Weights], Tensor]) -> Callable[[Weights], Tensor]:
    """Return the first of some weights that a layer has, where layers differ."""

    def weight(weights: Weights) -> Tensor:
        for source in sources[:-1]:
            with suppress(KeyError):
                return source(weights)
        return sources[-1](weights)

    return weight


def whole(name: str) -> Callable[[Weights], Tensor]:
    """Return a weight as it is."""
    return lambda weights: weights(name)


GATED_DIM, DELTA_DIM = 16, DIM // HEADS
GATED, DELTA = f"{THEIRS}.self_attn", f"{THEIRS}.linear_attn"


def part_of_delta(part: int) -> Callable[[Weights], Tensor]:
    """Return queries, keys, values or gates of the linear layers."""
    start = part * DELTA_DIM
    return rows(f"{DELTA}.in_proj_qkvz.weight", start, start + DELTA_DIM, HEADS)


QWEN3_NEXT: WeightMap = {
    **FEED_FORWARD,
    **QK_NORM,
    f"{ATTENTION}.query.weight": first_of(
        rows(f"{GATED}.q_proj.weight", 0, GATED_DIM, HEADS), part_of_delta(0)
    ),
    f"{ATTENTION}.key.weight": first_of(whole(f"{GATED}.k_proj.weight"), part_of_delta(1)),
    f"{ATTENTION}.value.weight": first_of(whole(f"{GATED}.v_proj.weight"), part_of_delta(2)),
    f"{ATTENTION}.gate.weight": first_of(
        rows(f"{GATED}.q_proj.weight", GATED_DIM, 2 * GATED_DIM, HEADS), part_of_delta(3)
    ),
    f"{ATTENTION}.output.weight": first_of(
        whole(f"{GATED}.o_proj.weight"), whole(f"{DELTA}.out_proj.weight")
    ),
    f"{ATTENTION}.rate.weight": rows(f"{DELTA}.in_proj_ba.weight", 0, 1, HEADS),
    f"{ATTENTION}.decay.weight": rows(f"{DELTA}.in_proj_ba.weight", 1, 2, HEADS),
    **{
        f"{ATTENTION}.{name}_convolution.weight": rows(
            f"{DELTA}.conv1d.weight", part * DIM, (part + 1) * DIM
        )
        for part, name in enumerate(("query", "key", "value"))
    },
    f"{ATTENTION}.log_speed": f"{DELTA}.A_log",
    f"{ATTENTION}.step_bias": f"{DELTA}.dt_bias",
    f"{ATTENTION}.norm": f"{DELTA}.norm",
}


def adapt_qwen3_next(name: str, weight: Tensor) -> Tensor:
    """Add 1 to the weights of norms, but for those of the linear layers."""
    is_centered = name.endswith("norm.weight") and "linear_attn" not in name
    return 1.0 + weight if is_centered else weight


@named_model(
    "qwen3_next",
    f"""{DECODER} {UNTIED} stack=qwen3_next stack.b.norm=rms_shared stack.b.kv_heads=2
    stack.b.head_dim=256""",
    QWEN3_NEXT,
    sizes=f"stack.b.head_dim={GATED_DIM}",
    adapt=adapt_qwen3_next,
    note="dense layers only (`mlp_only_layers` = all), as many key heads as value heads in the "
    "linear layers",
)
def qwen3_next() -> Any:
    config = Qwen3NextConfig(
        **SIZES,
        head_dim=GATED_DIM,
        linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS,
        linear_key_head_dim=DELTA_DIM,
        linear_value_head_dim=DELTA_DIM,
        mlp_only_layers=[*range(LAYERS)],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
    )
    return Qwen3NextForCausalLM(config)


MAMBA_GROUPS, STATE, VALUES = 2, 16, 2 * DIM
IN_PROJECTION = "backbone.layers.{i}.mixer.in_proj.weight"
ENDS = [0]
for width in (VALUES, VALUES, MAMBA_GROUPS * STATE, MAMBA_GROUPS * STATE, HEADS):
    ENDS.append(ENDS[-1] + width)
OF_MAMBA = "backbone.layers.{i}.mixer"
MAMBA2: WeightMap = {
    "embedding": "backbone.embeddings",
    f"{LAYER}.self_attention.norm": "backbone.layers.{i}.norm",
    **{
        f"{ATTENTION}.{name}.weight": rows(IN_PROJECTION, ENDS[part], ENDS[part + 1])
        for part, name in enumerate(("gate", "value", "key", "query", "step"))
    },
    f"{ATTENTION}.convolution": f"{OF_MAMBA}.conv1d",
    f"{ATTENTION}.step_bias": f"{OF_MAMBA}.dt_bias",
    f"{ATTENTION}.rate": f"{OF_MAMBA}.A_log",
    f"{ATTENTION}.skip": f"{OF_MAMBA}.D",
    f"{ATTENTION}.scale": f"{OF_MAMBA}.norm.weight",
    f"{ATTENTION}.output": f"{OF_MAMBA}.out_proj",
    "decoder.norm": "backbone.norm_f",
    "head": "lm_head",
}


@named_model(
    "mamba2",
    f"""task=language_modeling model.norm=rms model.norm_epsilon=1e-5 model.ffn_dim=null
    model.scale_embedding=false {UNTIED} attention=state_space_dual attention.groups=8
    attention.state_dim=128 position=none""",
    MAMBA2,
    sizes=f"model.ffn_dim=null attention.groups={MAMBA_GROUPS} attention.state_dim={STATE}",
)
def mamba2() -> Any:
    config = Mamba2Config(
        vocab_size=SIZES["vocab_size"],
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_heads=HEADS,
        head_dim=VALUES // HEADS,
        state_size=STATE,
        n_groups=MAMBA_GROUPS,
        chunk_size=8,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Mamba2ForCausalLM(config)


STEP_RANK, CHANNELS, JAMBA_LAYERS = 3, 2 * DIM, 8
OF_SCAN = f"{THEIRS}.mamba"
JAMBA: WeightMap = {
    **LLAMA,
    f"{LAYER}.feed_forward.norm": f"{THEIRS}.pre_ff_layernorm",
    f"{LAYER}.feed_forward.expand": LLAMA4[f"{LAYER}.feed_forward.expand"],
    f"{LAYER}.feed_forward.contract": LLAMA4[f"{LAYER}.feed_forward.contract"],
    "decoder.norm": "model.final_layernorm",
    f"{ATTENTION}.query.weight": first_of(
        whole(f"{GATED}.q_proj.weight"),
        rows(f"{OF_SCAN}.x_proj.weight", STEP_RANK + STATE, STEP_RANK + 2 * STATE),
    ),
    f"{ATTENTION}.key.weight": first_of(
        whole(f"{GATED}.k_proj.weight"),
        rows(f"{OF_SCAN}.x_proj.weight", STEP_RANK, STEP_RANK + STATE),
    ),
    f"{ATTENTION}.value.weight": first_of(
        whole(f"{GATED}.v_proj.weight"), rows(f"{OF_SCAN}.in_proj.weight", 0, CHANNELS)
    ),
    f"{ATTENTION}.output.weight": first_of(
        whole(f"{GATED}.o_proj.weight"), whole(f"{OF_SCAN}.out_proj.weight")
    ),
    f"{ATTENTION}.gate.weight": rows(f"{OF_SCAN}.in_proj.weight", CHANNELS, 2 * CHANNELS),
    f"{ATTENTION}.convolution": f"{OF_SCAN}.conv1d",
    f"{ATTENTION}.step.0.weight": rows(f"{OF_SCAN}.x_proj.weight", 0, STEP_RANK),
    f"{ATTENTION}.step.1": f"{OF_SCAN}.dt_proj",
    f"{ATTENTION}.step_norm": f"{OF_SCAN}.dt_layernorm",
    f"{ATTENTION}.key_norm": f"{OF_SCAN}.b_layernorm",
    f"{ATTENTION}.query_norm": f"{OF_SCAN}.c_layernorm",
    f"{ATTENTION}.rate": f"{OF_SCAN}.A_log",
    f"{ATTENTION}.skip": f"{OF_SCAN}.D",
}


@named_model(
    "jamba",
    f"{DECODER} {UNTIED} stack=jamba stack.a.inner_norm=true",
    JAMBA,
    sizes=f"model.layers={JAMBA_LAYERS} stack.a.rank={STEP_RANK} stack.a.state_dim={STATE}",
    note="dense layers only (`num_experts` = 1)",
)
def jamba() -> Any:
    config = JambaConfig(
        **SIZES | {"num_hidden_layers": JAMBA_LAYERS},
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=STATE,
        mamba_dt_rank=STEP_RANK,
    )
    return JambaForCausalLM(config)
