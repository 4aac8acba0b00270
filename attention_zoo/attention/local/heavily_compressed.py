"""Heavily compressed attention, HCA (DeepSeek-AI 2026)."""

from attention_zoo.attention.local.compressed import CompressedAttention
from attention_zoo.attention.softmax import register_softmax


@register_softmax(
    name="heavily_compressed",
    also_called=("hca",),
    paper="DeepSeek-AI 2026 (DeepSeek-V4), §2.3.2, eq. 20 to 23",
    equation="softmax over the last W tokens, C of all whole blocks, and a sink; C = norm(Σ_j "
    "softmax_j(Z_j + B_j) ⊙ V_j) over a block of m tokens, Z = x W_Z, V = x W_V",
    reference="transformers DeepseekV4Attention",
    deviations="queries have no latent, and the output projection has no groups; the encoding is a "
    "choice of its own. Blocks and the window are counted over the real tokens of each packed "
    "sequence; no mask's window, which would cut blocks, and no encoding on scores. As gates "
    "differ by channel, an entry's weight cannot be divided among its tokens: maps are over the "
    "tokens of the window, and over entries, each at the last token of its block",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads"),
    cache="W keys, an entry for each block of m tokens, and what the next entry is made of",
    weights="nonnegative",
)
class HeavilyCompressedAttention(CompressedAttention):
    """Attention to the last W tokens and to one entry for every m tokens; see the base class.

        C_i = norm(Σ_j softmax_j(Z_j + B_j) ⊙ V_j),   j in block i

    Every query sees the entries of all whole blocks. The paper has m = 128 and W = 128.
    """

    overlap = False
