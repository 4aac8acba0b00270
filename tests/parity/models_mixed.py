"""Decoders with latents, or with positions in some of the layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Olmo3Config,
    Olmo3ForCausalLM,
)

from tests.parity.models import (
    FFN_DIM,
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
    OLMO2,
    THEIRS,
    UNTIED,
)

FEED_FORWARD = {key: name for key, name in LLAMA.items() if "attention.attention" not in key}


def rows(name: str, start: int, stop: int, heads: int = 1) -> Callable[[Weights], Tensor]:
    """Return some of the rows of a matrix, of each head if there are several."""

    def weight(weights: Weights) -> Tensor:
        return weights(name).unflatten(0, (heads, -1))[:, start:stop].flatten(0, 1)

    return weight


@named_model(
    "olmo3",
    f"""{DECODER} {UNTIED} model.norm_order=res_post model.norm_epsilon=1e-5 stack=olmo3
    stack.a.norm_epsilon=1e-5 stack.b.norm_epsilon=1e-5 stack.a.window=4096""",
    OLMO2,
    sizes="stack.a.window=5 stack.a.kv_heads=2 stack.b.kv_heads=2",
)
def olmo3() -> Any:
    return Olmo3ForCausalLM(Olmo3Config(**SIZES, rms_norm_eps=1e-5, sliding_window=5))


LATENT, QUERY_LATENT, HEAD_DIM, ROPE_DIM = 12, 20, 10, 6
OF_LATENT = f"{THEIRS}.self_attn"
DEEPSEEK: WeightMap = {
    **FEED_FORWARD,
    f"{ATTENTION}.query_latent.0": f"{OF_LATENT}.q_a_proj",
    f"{ATTENTION}.query_latent.1": f"{OF_LATENT}.q_a_layernorm",
    f"{ATTENTION}.query": f"{OF_LATENT}.q_b_proj",
    f"{ATTENTION}.latent.0.weight": rows(f"{OF_LATENT}.kv_a_proj_with_mqa.weight", 0, LATENT),
    f"{ATTENTION}.shared_key.weight": rows(
        f"{OF_LATENT}.kv_a_proj_with_mqa.weight", LATENT, LATENT + ROPE_DIM
    ),
    f"{ATTENTION}.latent.1": f"{OF_LATENT}.kv_a_layernorm",
    f"{ATTENTION}.key.weight": rows(f"{OF_LATENT}.kv_b_proj.weight", 0, HEAD_DIM, HEADS),
    f"{ATTENTION}.value.weight": rows(
        f"{OF_LATENT}.kv_b_proj.weight", HEAD_DIM, 2 * HEAD_DIM, HEADS
    ),
    f"{ATTENTION}.output": f"{OF_LATENT}.o_proj",
}


@named_model(
    "deepseek_v3",
    f"""{DECODER} {UNTIED} attention=multi_head_latent attention.head_dim=128
    attention.latent_dim=512 attention.query_latent_dim=1536 attention.rope_dim=64 position=yarn
    position.layout=interleaved position.factor=40 position.original_length=4096
    position.mscale=1.0 position.mscale_all_dim=1.0""",
    DEEPSEEK,
    sizes=f"""attention.head_dim={HEAD_DIM} attention.latent_dim={LATENT}
    attention.query_latent_dim={QUERY_LATENT} attention.rope_dim={ROPE_DIM} position.factor=8
    position.original_length=16""",
    note="dense layers only (`first_k_dense_replace` = all)",
)
def deepseek_v3() -> Any:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    config = DeepseekV3Config(
        **SIZES | {"num_key_value_heads": HEADS},
        q_lora_rank=QUERY_LATENT,
        kv_lora_rank=LATENT,
        qk_nope_head_dim=HEAD_DIM,
        qk_rope_head_dim=ROPE_DIM,
        v_head_dim=HEAD_DIM,
        first_k_dense_replace=LAYERS,
        rope_parameters=rope,
    )
    return DeepseekV3ForCausalLM(config)


LLAMA4: WeightMap = {
    **LLAMA,
    f"{LAYER}.feed_forward.expand": (
        f"{THEIRS}.feed_forward.gate_proj",
        f"{THEIRS}.feed_forward.up_proj",
    ),
    f"{LAYER}.feed_forward.contract": f"{THEIRS}.feed_forward.down_proj",
    # Their norm has no weight.
    f"{ATTENTION}.query_norm.weight": lambda weights: torch.ones(HEAD_DIM),
    f"{ATTENTION}.key_norm.weight": lambda weights: torch.ones(HEAD_DIM),
}


@named_model(
    "llama4",
    f"""{DECODER} {UNTIED} model.norm_epsilon=1e-5 stack=llama4
    attention@stack.a=qk_norm stack.a.norm_epsilon=1e-5 stack.a.kv_heads=2
    stack.a.position.layout=interleaved attention@stack.b=grouped_query""",
    LLAMA4,
    sizes=f"stack.a.head_dim={HEAD_DIM} stack.b.head_dim={HEAD_DIM}",
    note="the text model, dense layers only (`moe_layers` = none), up to 8,191 tokens: beyond, "
    "chunks of attention and the temperature of the layers without positions differ",
)
def llama4() -> Any:
    config = Llama4TextConfig(
        **SIZES,
        head_dim=HEAD_DIM,
        intermediate_size_mlp=FFN_DIM,
        moe_layers=[],
        rms_norm_eps=1e-5,
    )
    return Llama4ForCausalLM(config)
