"""Gemma and gpt-oss: windows in some of the layers, caps or sinks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
)

from tests.parity.models import HEADS, SIZES, WeightMap, Weights, named_model
from tests.parity.models_llama import ATTENTION, LAYER, LLAMA, QK_NORM, THEIRS, UNTIED

HEAD_DIM, SCALAR = 10, 14
GEMMA: WeightMap = {
    **LLAMA,
    f"{LAYER}.self_attention.output_norm": f"{THEIRS}.post_attention_layernorm",
    f"{LAYER}.feed_forward.norm": f"{THEIRS}.pre_feedforward_layernorm",
    f"{LAYER}.feed_forward.output_norm": f"{THEIRS}.post_feedforward_layernorm",
}
SANDWICH = """
    task=language_modeling model.norm=rms model.norm_order=sandwich model.activation=geglu_tanh
    model.ffn_bias=false
"""
SCALED = "queries are multiplied by √(head_dim / query_pre_attn_scalar), which is 1 in most sizes"


def adapt_gemma(scaled: str) -> Callable[[str, Tensor], Tensor]:
    """Add 1 to the weights of norms, and scale queries by a weight whose name ends so."""

    def adapt(name: str, weight: Tensor) -> Tensor:
        weight = 1.0 + weight if name.endswith("norm.weight") else weight
        return weight * (HEAD_DIM / SCALAR) ** 0.5 if name.endswith(scaled) else weight

    return adapt


@named_model(
    "gemma2",
    f"""{SANDWICH} model.logit_cap=30 stack=hybrid stack.pattern=ab
    attention@stack.a=soft_capped stack.a.kv_heads=2 stack.a.head_dim=256 stack.a.window=4096
    attention@stack.b=soft_capped stack.b.kv_heads=2 stack.b.head_dim=256""",
    GEMMA,
    sizes=f"""model.logit_cap=0.5 stack.a.head_dim={HEAD_DIM} stack.b.head_dim={HEAD_DIM}
    stack.a.window=5 stack.a.cap=0.2 stack.b.cap=0.2""",
    adapt=adapt_gemma("q_proj.weight"),
    note=f"tied embeddings; {SCALED}",
)
def gemma2() -> Any:
    config = Gemma2Config(
        **SIZES,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=SCALAR,
        sliding_window=5,
        attn_logit_softcapping=0.2,
        final_logit_softcapping=0.5,
    )
    return Gemma2ForCausalLM(config)


@named_model(
    "gemma3",
    f"""{SANDWICH} stack=gemma3 stack.a.kv_heads=2 stack.a.head_dim=256 stack.a.window=1024
    stack.b.kv_heads=2 stack.b.head_dim=256""",
    GEMMA | QK_NORM,
    sizes=f"""model.layers=6 stack.a.head_dim={HEAD_DIM} stack.b.head_dim={HEAD_DIM}
    stack.a.window=5""",
    adapt=adapt_gemma("q_norm.weight"),
    note=f"the text model; tied embeddings; {SCALED}",
)
def gemma3() -> Any:
    config = Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 6},
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=SCALAR,
        sliding_window=5,
    )
    return Gemma3ForCausalLM(config)


def expert(name: str, *, gated: bool = False) -> Callable[[Weights], Tensor]:
    """Return a weight of the only expert; the rows of gates and others take turns."""

    def weight(weights: Weights) -> Tensor:
        found = weights(f"{THEIRS}.mlp.experts.{name}")[0].t()
        return found.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) if gated else found

    return weight


GPT_OSS: WeightMap = {
    **{key: name for key, name in LLAMA.items() if "expand" not in key and "contract" not in key},
    f"{ATTENTION}.sinks": f"{THEIRS}.self_attn.sinks",
    f"{LAYER}.feed_forward.expand.weight": expert("gate_up_proj", gated=True),
    f"{LAYER}.feed_forward.expand.bias": expert("gate_up_proj_bias", gated=True),
    f"{LAYER}.feed_forward.contract.weight": expert("down_proj"),
    f"{LAYER}.feed_forward.contract.bias": expert("down_proj_bias"),
}


def of_kinds(options: str, kinds: str = "ab") -> str:
    """Return overrides for several kinds of layers, in which {k} is the kind."""
    return " ".join(options.replace("{k}", kind) for kind in kinds)


@named_model(
    "gpt_oss",
    f"""task=language_modeling model.norm=rms model.norm_epsilon=1e-5
    model.activation=clamped_swiglu model.scale_embedding=false {UNTIED} stack=gpt_oss
    stack.a.window=128 """
    + of_kinds(
        """stack.{k}.kv_heads=2 stack.{k}.bias=true position@stack.{k}.position=yarn
        stack.{k}.position.factor=32 stack.{k}.position.original_length=4096
        stack.{k}.position.truncate=false """
    ),
    GPT_OSS,
    sizes="stack.a.window=5 "
    + of_kinds(
        """stack.{k}.head_dim=16 stack.{k}.position.factor=4
        stack.{k}.position.original_length=16 """
    ),
    without_effect=("mlp.router",),
    note="one expert, which is a dense feed-forward",
)
def gpt_oss() -> Any:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    config = GptOssConfig(
        **SIZES,
        head_dim=16,
        sliding_window=5,
        num_local_experts=1,
        num_experts_per_tok=1,
        rope_parameters=rope,
    )
    assert config.num_attention_heads == HEADS
    return GptOssForCausalLM(config)
