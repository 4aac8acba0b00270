"""The facts about a model that its diagram shows, read from the model itself."""

from itertools import groupby
from typing import NamedTuple, cast

import torch
from torch import nn

from attention_zoo.attention.base import Attention
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.models.blocks import AttentionSublayer, FeedForward, Sublayer
from attention_zoo.models.embedding import TokenEmbedding
from attention_zoo.models.stacks import Decoder, Encoder
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import BEFORE_ATTENTION, SITES, Site


class ModuleSummary(NamedTuple):
    """A module of a model: a box in the diagram."""

    kind: str  # "embedding", "position", "norm", "attention", "feed_forward" or "output"
    title: str
    facts: tuple[str, ...] = ()


class SublayerSummary(NamedTuple):
    """A sublayer: the modules inside its residual connection and those after it, in order."""

    inside_residual: tuple[ModuleSummary, ...]
    after_residual: tuple[ModuleSummary, ...]
    reads_memory: bool


class LayerGroup(NamedTuple):
    """Consecutive layers with the same modules."""

    first: int  # from 1
    last: int
    num_parameters: int  # of each layer
    sublayers: tuple[SublayerSummary, ...]


class StackSummary(NamedTuple):
    """An encoder or a decoder, with the modules before and after its layers, in order."""

    title: str
    num_parameters: int
    inputs: str
    modules_before: tuple[ModuleSummary, ...]
    layer_groups: tuple[LayerGroup, ...]
    modules_after: tuple[ModuleSummary, ...]
    outputs: str | None  # None for an encoder, whose output is the memory of the decoder


def summarize_model(model: nn.Module) -> tuple[StackSummary, ...]:
    """Summarize encoder and decoder of a `Seq2Seq`, or the decoder of a `LanguageModel`.

    Dropout is left out, because it does nothing in a trained model.
    """
    if isinstance(model, LanguageModel):
        embedding = summarize_embedding(model.embedding)
        head = summarize_head(model.head, model.embedding)
        return (summarize_stack(model.decoder, "tokens", embedding, head),)
    if not isinstance(model, Seq2Seq):
        raise ValueError(
            f"a diagram can be drawn of a Seq2Seq or a LanguageModel, got a {type(model).__name__}."
        )
    source = summarize_embedding(model.source_embedding)
    shared = model.target_embedding is model.source_embedding
    target = summarize_embedding(model.target_embedding, "the source's" if shared else None)
    head = summarize_head(model.head, model.target_embedding)
    encoder = summarize_stack(model.encoder, "source tokens", source, None)
    return encoder, summarize_stack(model.decoder, "target tokens", target, head)


def summarize_stack(
    stack: Encoder | Decoder, inputs: str, embedding: ModuleSummary, head: ModuleSummary | None
) -> StackSummary:
    """Summarize an encoder, which has no head, or a decoder."""
    before = (embedding, *summarize_position(stack.position))
    after = () if isinstance(stack.norm, nn.Identity) else (summarize_norm(stack.norm),)
    outputs = None
    if head is not None:
        after, outputs = (*after, head), "logits of the next token"
    title, parameters, groups = type(stack).__name__, count_parameters(stack), group_layers(stack)
    return StackSummary(title, parameters, inputs, before, groups, after, outputs)


def group_layers(stack: Encoder | Decoder) -> tuple[LayerGroup, ...]:
    """Group consecutive layers of a stack that have the same modules."""
    layers = []
    for number, layer in enumerate(stack.layers, start=1):
        sublayers = [summarize_sublayer(x) for x in layer.children() if isinstance(x, Sublayer)]
        layers.append(LayerGroup(number, number, count_parameters(layer), tuple(sublayers)))
    groups = [list(group) for _, group in groupby(layers, key=lambda layer: layer[2:])]
    return tuple(group[0]._replace(last=group[-1].last) for group in groups)


def summarize_sublayer(sublayer: Sublayer) -> SublayerSummary:
    """Summarize a sublayer, with its norm where the model has it."""
    if isinstance(sublayer, AttentionSublayer):
        module, reads_memory = summarize_attention(sublayer.attention), sublayer.role == "cross"
    else:
        module, reads_memory = summarize_feed_forward(cast(FeedForward, sublayer)), False
    norm = summarize_norm(sublayer.norm)
    inside, after = ((norm, module), ()) if sublayer.pre_norm else ((module,), (norm,))
    return SublayerSummary(inside, after, reads_memory)


def summarize_attention(attention: Attention) -> ModuleSummary:
    """Summarize mechanism, heads, window and encoding of an attention."""
    mechanism = f"{attention.card.name}, {pluralize(attention.heads, 'head')}"
    if attention.kv_heads != attention.heads:
        mechanism += f", {attention.kv_heads} of keys and values"
    facts = [mechanism]
    if attention.window is not None:
        facts.append(f"window of {pluralize(attention.window, 'token')}")
    if sites := position_sites(attention):
        acts_on = " and ".join(SITES[site] for site in sites)
        facts.append(f"{attention.position.card.name} on {acts_on}")
    role = attention.role
    title = "cross-attention" if role == "cross" else f"{role} self-attention"
    return ModuleSummary("attention", title, tuple(facts))


def position_sites(attention: Attention) -> list[Site]:
    """Return where the encoding of an attention acts inside it.

    An encoding may skip a layer: then its `rotate` returns the queries themselves.
    """
    position = attention.position
    sites = [site for site in position.card.acts if site not in BEFORE_ATTENTION]
    if "heads" in sites:
        device = next(attention.parameters()).device
        heads = torch.zeros(1, position.heads, 1, position.head_dim, device=device)
        positions = torch.ones(1, 1, dtype=torch.long, device=device)
        if position.rotate(heads, heads, positions)[0] is heads:
            sites.remove("heads")
    return sites


def summarize_feed_forward(feed_forward: FeedForward) -> ModuleSummary:
    """Summarize widths and activation of a feed-forward network."""
    dim, ffn_dim = feed_forward.contract.out_features, feed_forward.contract.in_features
    facts = f"{dim:,} → {ffn_dim:,} → {dim:,}", feed_forward.activation
    return ModuleSummary("feed_forward", "feed-forward", facts)


def summarize_norm(norm: nn.Module) -> ModuleSummary:
    """Summarize a norm by its class."""
    return ModuleSummary("norm", type(norm).__name__)


def summarize_embedding(embedding: TokenEmbedding, owner: str | None = None) -> ModuleSummary:
    """Summarize an embedding; `owner` is set if it uses the table of another one."""
    size = f"{embedding.num_embeddings:,} × {embedding.embedding_dim:,}"
    table = f"{count_parameters(embedding):,} parameters" if owner is None else f"{owner} table"
    return ModuleSummary("embedding", "token embedding", (size, table))


def summarize_position(position: PositionalEncoding) -> tuple[ModuleSummary, ...]:
    """Summarize what an encoding does before the layers; it may do nothing there."""
    sites = [SITES[site] for site in position.card.acts if site in BEFORE_ATTENTION]
    if not sites:
        return ()
    facts = [f"on {' and '.join(sites)}"]
    if num_parameters := count_parameters(position):
        facts.append(f"{num_parameters:,} parameters")
    return (ModuleSummary("position", f"{position.card.name} positions", tuple(facts)),)


def summarize_head(head: nn.Linear, embedding: TokenEmbedding) -> ModuleSummary:
    """Summarize the output projection, whose weights may be those of the embedding."""
    tied = head.weight is embedding.weight
    size = f"{head.in_features:,} → {head.out_features:,}"
    weights = "the embedding's table" if tied else f"{count_parameters(head):,} parameters"
    return ModuleSummary("output", "output", (size, weights))


def count_parameters(module: nn.Module) -> int:
    """Count the learned numbers of a module; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def pluralize(count: int, noun: str) -> str:
    """Return `1 head` or `4 heads`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
