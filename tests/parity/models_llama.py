"""Decoders in the manner of Llama: RMSNorm, rotary positions, SwiGLU, no biases."""

from typing import Any

from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.parity.models import SIZES, WeightMap, named_model

LAYER, THEIRS = "decoder.layers.{i}", "model.layers.{i}"
ATTENTION = f"{LAYER}.self_attention.attention"
LLAMA: WeightMap = {
    "embedding": "model.embed_tokens",
    f"{LAYER}.self_attention.norm": f"{THEIRS}.input_layernorm",
    f"{ATTENTION}.query": f"{THEIRS}.self_attn.q_proj",
    f"{ATTENTION}.key": f"{THEIRS}.self_attn.k_proj",
    f"{ATTENTION}.value": f"{THEIRS}.self_attn.v_proj",
    f"{ATTENTION}.output": f"{THEIRS}.self_attn.o_proj",
    f"{LAYER}.feed_forward.norm": f"{THEIRS}.post_attention_layernorm",
    f"{LAYER}.feed_forward.expand": (f"{THEIRS}.mlp.gate_proj", f"{THEIRS}.mlp.up_proj"),
    f"{LAYER}.feed_forward.contract": f"{THEIRS}.mlp.down_proj",
    "decoder.norm": "model.norm",
    "head": "lm_head",
}
QK_NORM: WeightMap = {
    f"{ATTENTION}.query_norm": f"{THEIRS}.self_attn.q_norm",
    f"{ATTENTION}.key_norm": f"{THEIRS}.self_attn.k_norm",
}
DECODER = """
    task=language_modeling model.norm=rms model.activation=swiglu model.ffn_bias=false
    model.scale_embedding=false
"""
UNTIED = "model.tie_embeddings=false"


@named_model("llama", f"{DECODER} {UNTIED} attention=grouped_query position=rotary", LLAMA)
def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


@named_model(
    "mistral",
    f"{DECODER} {UNTIED} attention=sliding_window attention.kv_heads=2 attention.window=4096",
    LLAMA,
    sizes="attention.window=5",
)
def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


@named_model(
    "qwen3",
    f"{DECODER} {UNTIED} attention=qk_norm attention.kv_heads=2 attention.head_dim=128",
    LLAMA | QK_NORM,
    sizes="attention.head_dim=10",
)
def qwen3() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=10))


OLMO2 = {
    **LLAMA,
    **QK_NORM,
    f"{LAYER}.self_attention.norm": f"{THEIRS}.post_attention_layernorm",
    f"{LAYER}.feed_forward.norm": f"{THEIRS}.post_feedforward_layernorm",
}


@named_model(
    "olmo2",
    f"""{DECODER} {UNTIED} model.norm_order=res_post model.norm_epsilon=1e-5
    attention=qk_norm attention.norm=rms_full attention.norm_epsilon=1e-5 attention.kv_heads=2""",
    OLMO2,
)
def olmo2() -> Any:
    return Olmo2ForCausalLM(Olmo2Config(**SIZES, rms_norm_eps=1e-5))


@named_model(
    "smollm3",
    f"{DECODER} stack=smollm3",
    LLAMA,
    note="tied embeddings",
)
def smollm3() -> Any:
    return SmolLM3ForCausalLM(SmolLM3Config(**SIZES))


COHERE2 = {key: name for key, name in LLAMA.items() if not key.endswith("feed_forward.norm")}


@named_model(
    "cohere2",
    """task=language_modeling model.norm=layer_no_bias model.activation=swiglu model.ffn_bias=false
    model.scale_embedding=false model.parallel_feed_forward=true model.logit_scale=0.0625
    stack=cohere2 stack.a.window=4096 stack.a.kv_heads=2 stack.a.position.layout=interleaved
    attention@stack.b=grouped_query""",
    COHERE2,
    sizes="stack.a.window=5",
    note="tied embeddings",
)
def cohere2() -> Any:
    return Cohere2ForCausalLM(Cohere2Config(**SIZES, sliding_window=5))
