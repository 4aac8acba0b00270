"""What a model is made of, read off the model itself: the facts that a diagram of it shows."""

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
from attention_zoo.zoo import BEFORE_ATTENTION, SITES, Role, Site

ROLE_TITLES: dict[Role, str] = {
    "global": "global self-attention",
    "causal": "causal self-attention",
    "cross": "cross-attention",
}


class Box(NamedTuple):
    """A part of a model."""

    kind: str  # "embedding", "position", "norm", "attention", "feed_forward" or "output"
    title: str
    facts: tuple[str, ...] = ()


class Branch(NamedTuple):
    """A sublayer: the boxes beside its residual connection, and those behind it, in their order."""

    beside: tuple[Box, ...]
    behind: tuple[Box, ...]
    reads_memory: bool


class Run(NamedTuple):
    """Neighbouring layers that are made alike."""

    first: int  # from 1
    last: int
    parameters: int  # of each
    branches: tuple[Branch, ...]


class Column(NamedTuple):
    """A stack, with what stands before and behind it, in the order of computing."""

    title: str
    parameters: int  # of the stack
    reads: str
    before: tuple[Box, ...]
    runs: tuple[Run, ...]
    behind: tuple[Box, ...]
    writes: str | None  # None of an encoder, whose memory the decoder reads


def columns(model: nn.Module) -> tuple[Column, ...]:
    """Encoder and decoder of a `Seq2Seq`, or the decoder of a `LanguageModel`.

    Dropout, which does nothing in a trained model, is left out.

    Raises:
        ValueError: another model.
    """
    if isinstance(model, LanguageModel):
        table, head = embedding_box(model.embedding), head_box(model.head, model.embedding)
        return (column("Decoder", model.decoder, "tokens", table, head),)
    if not isinstance(model, Seq2Seq):
        raise ValueError(
            f"a diagram can be drawn of a Seq2Seq or a LanguageModel, got a {type(model).__name__}."
        )
    source, target = model.source_embedding, model.target_embedding
    table = embedding_box(target, None if target is not source else "the source's")
    return (
        column("Encoder", model.encoder, "source tokens", embedding_box(source), None),
        column("Decoder", model.decoder, "target tokens", table, head_box(model.head, target)),
    )


def column(
    title: str, stack: Encoder | Decoder, reads: str, embedding: Box, head: Box | None
) -> Column:
    norm = () if isinstance(stack.norm, nn.Identity) else (norm_box(stack.norm),)
    return Column(
        title,
        parameters(stack),
        reads,
        (embedding, *position_boxes(stack.position)),
        runs(stack),
        norm if head is None else (*norm, head),
        None if head is None else "logits of the next token",
    )


def runs(stack: Encoder | Decoder) -> tuple[Run, ...]:
    """The layers of a stack, neighbours together that have the same parts."""
    described = [
        (tuple(map(branch, sublayers(layer))), parameters(layer)) for layer in stack.layers
    ]
    found: list[Run] = []
    for (branches, count), group in groupby(described):
        first = found[-1].last + 1 if found else 1
        found.append(Run(first, first + len(list(group)) - 1, count, branches))
    return tuple(found)


def sublayers(layer: nn.Module) -> list[Sublayer]:
    return [part for part in layer.children() if isinstance(part, Sublayer)]


def branch(sublayer: Sublayer) -> Branch:
    if isinstance(sublayer, AttentionSublayer):
        box, reads_memory = attention_box(sublayer.attention), sublayer.role == "cross"
    else:
        box, reads_memory = feed_forward_box(cast(FeedForward, sublayer)), False
    norm = norm_box(sublayer.norm)
    if sublayer.pre_norm:
        return Branch((norm, box), (), reads_memory)
    return Branch((box,), (norm,), reads_memory)


def attention_box(attention: Attention) -> Box:
    made = f"{attention.card.name}, {counted(attention.heads, 'head')}"
    if attention.kv_heads != attention.heads:
        made += f", {attention.kv_heads} of keys and values"
    facts = [made]
    if attention.window is not None:
        facts.append(f"window of {counted(attention.window, 'token')}")
    inside = sites_inside(attention)
    if inside:
        places = " and ".join(SITES[site] for site in inside)
        facts.append(f"{attention.position.card.name} on {places}")
    return Box("attention", ROLE_TITLES[attention.role], tuple(facts))


def sites_inside(attention: Attention) -> list[Site]:
    """Where in this attention its encoding acts.

    One that turns queries and keys may pass a layer over: then it gives them back as they are.
    """
    position = attention.position
    sites = [site for site in position.card.acts if site not in BEFORE_ATTENTION]
    if "heads" in sites:
        device = next(attention.parameters()).device
        probe = torch.zeros(1, position.heads, 1, position.head_dim, device=device)
        turned, _ = position.rotate(probe, probe, torch.ones(1, 1, dtype=torch.long, device=device))
        if turned is probe:
            sites.remove("heads")
    return sites


def feed_forward_box(feed_forward: FeedForward) -> Box:
    dim, ffn_dim = feed_forward.contract.out_features, feed_forward.contract.in_features
    facts = f"{dim:,} → {ffn_dim:,} → {dim:,}", feed_forward.activation
    return Box("feed_forward", "feed-forward", facts)


def norm_box(norm: nn.Module) -> Box:
    return Box("norm", type(norm).__name__)


def embedding_box(embedding: TokenEmbedding, owner: str | None = None) -> Box:
    """Of a table, which may be somebody else's."""
    sizes = f"{embedding.num_embeddings:,} × {embedding.embedding_dim:,}"
    whose = f"{parameters(embedding):,} parameters" if owner is None else f"{owner} table"
    return Box("embedding", "token embedding", (sizes, whose))


def position_boxes(position: PositionalEncoding) -> tuple[Box, ...]:
    """What an encoding does before the layers, if anything."""
    sites = [SITES[site] for site in position.card.acts if site in BEFORE_ATTENTION]
    if not sites:
        return ()
    own = parameters(position)
    facts = (f"on {' and '.join(sites)}", *([f"{own:,} parameters"] if own else []))
    return (Box("position", f"{position.card.name} positions", facts),)


def head_box(head: nn.Linear, embedding: TokenEmbedding) -> Box:
    tied = head.weight is embedding.weight
    whose = "the embedding's table" if tied else f"{parameters(head):,} parameters"
    return Box("output", "output", (f"{head.in_features:,} → {head.out_features:,}", whose))


def parameters(module: nn.Module) -> int:
    """How many numbers are learned in a part; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
