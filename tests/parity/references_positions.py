"""The encodings of well-known models, each in the attention of one that uses it."""

import torch
from torch import Tensor, nn
from transformers import BloomConfig, GPT2Config, GPT2Model, LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from attention_zoo import create_attention, create_position
from tests.parity.compared import Outcome, encoded, outcome, parity
from tests.parity.references_dense import tokens
from tests.parity.references_transformers import (
    DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
    POSITIONS,
    copy_projections,
    future,
    with_rotary,
)

HEAD_DIM = DIM // HEADS


@parity("rotary", "transformers LlamaAttention")
def rotary_half_split() -> tuple[Outcome, Outcome]:
    """With a base that is not the default, and two queries to a key."""
    ours = create_attention("grouped_query", dim=DIM, heads=HEADS, kv_heads=KV_HEADS, role="causal")
    encoded(ours, "rotary", base=300.0)
    config = LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        attn_implementation="eager",
    )
    theirs = LlamaAttention(config, layer_idx=0)
    copy_projections(ours, theirs)
    return with_rotary(ours, theirs, LlamaRotaryEmbedding(config))


@parity("learned", "transformers GPT2Model")
def learned() -> tuple[Outcome, Outcome]:
    """Of a model without layers, and without its last norm."""
    ours = create_position(
        "learned", dim=DIM, heads=HEADS, head_dim=HEAD_DIM, role="causal", max_length=LENGTH
    )
    theirs = GPT2Model(GPT2Config(n_embd=DIM, n_head=HEADS, n_layer=0, n_positions=LENGTH)).eval()
    theirs.ln_f = nn.Identity()
    theirs.wpe.load_state_dict(ours.table.state_dict())
    x = tokens()
    return (
        outcome(ours.embed(x, POSITIONS), [x, ours.table.weight]),
        outcome(theirs(inputs_embeds=x).last_hidden_state, [x, theirs.wpe.weight]),
    )


@parity("alibi", "transformers BloomAttention")
def alibi() -> tuple[Outcome, Outcome]:
    """Of six heads, no power of two."""
    dim, heads = 36, 6
    ours = create_attention(
        "multi_head", dim=dim, heads=heads, bias=True, role="causal", position="alibi"
    )
    config = BloomConfig(hidden_size=dim, n_head=heads, hidden_dropout=0.0, attention_dropout=0.0)
    theirs = BloomAttention(config, layer_idx=0)
    theirs.dense.load_state_dict(ours.output.state_dict())
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.query_key_value.weight.copy_(woven([part.weight for part in parts], heads))
        theirs.query_key_value.bias.copy_(woven([part.bias for part in parts], heads))
    x = torch.randn(2, LENGTH, dim, requires_grad=True)
    slopes = build_alibi_tensor(torch.ones(2, LENGTH), heads, torch.float32)
    expected, _ = theirs(x, torch.zeros_like(x), slopes, future())
    return (
        outcome(ours(x), [x, ours.output.weight]),
        outcome(expected, [x, theirs.dense.weight]),
    )


def woven(parts: list[Tensor], heads: int) -> Tensor:
    """Rows of queries, keys and values [(h c) …], head by head."""
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


@parity("t5_bias", "transformers T5Attention")
def t5_bias() -> tuple[Outcome, Outcome]:
    """T5 does not scale the scores: our queries are larger by √c."""
    ours = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    encoded(ours, "t5_bias", buckets=8, max_distance=12)
    config = T5Config(
        d_model=DIM,
        d_kv=HEAD_DIM,
        num_heads=HEADS,
        is_decoder=True,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    for part, other in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
        getattr(theirs, other).load_state_dict(getattr(ours, part).state_dict())
    with torch.no_grad():
        ours.query.weight.mul_(HEAD_DIM**0.5)
    theirs.relative_attention_bias.load_state_dict(ours.position.table.state_dict())
    x = tokens()
    return (
        outcome(ours(x), [x, ours.key.weight, ours.position.table.weight]),
        outcome(
            theirs(x, mask=future())[0],
            [x, theirs.k.weight, theirs.relative_attention_bias.weight],
        ),
    )
