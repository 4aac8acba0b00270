"""Encoders and decoders for translation."""

from typing import Any

from torch import Tensor
from transformers import (
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.parity.models import (
    DIM,
    FFN_DIM,
    HEADS,
    LAYERS,
    PAD,
    VOCABULARY,
    WeightMap,
    named_model,
)

T5_HEAD_DIM = 10
LAYER, BLOCK = "layers.{i}", "block.{i}.layer"


def t5_stack(stack: str, feed_forward: int) -> WeightMap:
    block = f"{stack}.{BLOCK}"
    parts = {"query": "q", "key": "k", "value": "v", "output": "o"}
    return {
        f"{stack}.position.table": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{stack}.{LAYER}.self_attention.norm": f"{block}.0.layer_norm",
        f"{stack}.{LAYER}.cross_attention.norm": f"{block}.1.layer_norm",
        f"{stack}.{LAYER}.feed_forward.norm": f"{block}.{feed_forward}.layer_norm",
        f"{stack}.{LAYER}.feed_forward.expand": f"{block}.{feed_forward}.DenseReluDense.wi",
        f"{stack}.{LAYER}.feed_forward.contract": f"{block}.{feed_forward}.DenseReluDense.wo",
        f"{stack}.norm": f"{stack}.final_layer_norm",
        **{
            f"{stack}.{LAYER}.{ours}.attention.{name}": f"{block}.{theirs}.{other}"
            for ours, theirs in (
                ("self_attention", "0.SelfAttention"),
                ("cross_attention", "1.EncDecAttention"),
            )
            for name, other in parts.items()
        },
    }


def unscale(name: str, weight: Tensor) -> Tensor:
    """Multiply queries by √c, by which our scores are divided, and theirs are not."""
    return weight * T5_HEAD_DIM**0.5 if name.endswith("Attention.q.weight") else weight


@named_model(
    "t5",
    """task=translation attention=multi_head attention.head_dim=64 position=t5_bias model.norm=rms
    model.activation=relu model.ffn_bias=false model.scale_embedding=false
    model.logit_scale=0.0442""",
    {
        "source_embedding": "shared",
        "target_embedding": "shared",
        **t5_stack("encoder", 1),
        **t5_stack("decoder", 2),
        "head": "lm_head",
    },
    sizes=f"attention.head_dim={T5_HEAD_DIM} model.logit_scale={DIM**-0.5}",
    adapt=unscale,
    note="`logit_scale` is 1/√dim; queries are multiplied by √head_dim",
)
def t5() -> Any:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=DIM,
        d_kv=T5_HEAD_DIM,
        d_ff=FFN_DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        pad_token_id=PAD,
        attn_implementation="eager",
    )
    return T5ForConditionalGeneration(config)


def marian_stack(stack: str) -> WeightMap:
    layer = f"model.{stack}.layers.{{i}}"
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return {
        f"{stack}.{LAYER}.self_attention.norm": f"{layer}.self_attn_layer_norm",
        f"{stack}.{LAYER}.cross_attention.norm": f"{layer}.encoder_attn_layer_norm",
        f"{stack}.{LAYER}.feed_forward.norm": f"{layer}.final_layer_norm",
        f"{stack}.{LAYER}.feed_forward.expand": f"{layer}.fc1",
        f"{stack}.{LAYER}.feed_forward.contract": f"{layer}.fc2",
        **{
            f"{stack}.{LAYER}.{ours}.attention.{name}": f"{layer}.{theirs}.{other}"
            for ours, theirs in (
                ("self_attention", "self_attn"),
                ("cross_attention", "encoder_attn"),
            )
            for name, other in parts.items()
        },
    }


@named_model(
    "marian",
    """task=translation attention=multi_head attention.bias=true position=sinusoidal
    position.layout=half_split model.norm=layer model.norm_order=post model.activation=silu
    model.logit_bias=true""",
    {
        "source_embedding": "model.shared",
        "target_embedding": "model.shared",
        **marian_stack("encoder"),
        **marian_stack("decoder"),
        "head.weight": "lm_head.weight",
        "head.bias": "final_logits_bias",
    },
)
def marian() -> Any:
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=DIM,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN_DIM,
        decoder_ffn_dim=FFN_DIM,
        max_position_embeddings=64,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        attn_implementation="eager",
    )
    model = MarianMTModel(config)
    model.final_logits_bias.normal_()
    return model
