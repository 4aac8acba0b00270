"""The diagram of a model, drawn from the model itself: its facts, and how they are drawn."""

import textwrap
from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from torch import nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.projections import projection_convolutions, token_projections
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.models.blocks import AttentionSublayer, FeedForward, NormOrder, Sublayer
from attention_zoo.models.embedding import TokenEmbedding
from attention_zoo.models.stacks import Decoder, Encoder, TransformerLayer
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.wording import pluralize
from attention_zoo.zoo import BEFORE_ATTENTION, SITES, Site

# All lengths are in inches.
_BOX = 2.75  # width of a box
_GAP = 0.26  # arrow between boxes
_LINE = 0.185  # height of a line of text
_PADDING = 0.09  # above and below the text of a box
_BYPASS = 0.22  # from a box to the residual connection beside it
_PLUS = 0.1  # radius of the plus sign
_MARGIN = 0.14  # between the layers and their frame
_SIDE = 1.05  # beside a frame, for the number of its layers
_MIDDLE = 0.6  # between two frames, for the memory
_EDGE = 0.15  # around the diagram
_CAPTION, _TITLE = 0.85, 0.75  # below the first arrow, and above the last one
_HALF_FRAME = _BOX / 2 + _BYPASS + _MARGIN  # on the side of the residual connections
_OUTER, _INNER = _HALF_FRAME + _SIDE, _BOX / 2 + _MARGIN  # halves of a stack
_COLOURS = {
    "embedding": style.PINK,
    "position": style.BLUE,
    "norm": style.GREEN,
    "attention": style.ORANGE,
    "feed_forward": style.SKY,
    "output": style.PINK,
}


class ModuleSummary(NamedTuple):
    """A module of a model: a box in the diagram."""

    kind: str  # "embedding", "position", "norm", "attention", "feed_forward" or "output"
    title: str
    facts: tuple[str, ...] = ()


# Of a layer: whose keys and values its self-attention reads, and its cross-attention.
KVSources = tuple[int | None, int | None]


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
    outputs: str  # empty for an encoder, whose output is the memory of the decoder


def draw_architecture(model: nn.Module) -> Figure:
    """Draw encoder and decoder with their layers, drawn from the model.

    The model is a `Seq2Seq` or a `LanguageModel`. As in Vaswani et al. 2017 (figure 1), it is drawn
    from bottom to top. Consecutive layers with the same modules are drawn once, with their number.
    """
    figure, axis = style.new_canvas(1, 1)
    drawings = []
    left = _EDGE
    for stack in summarize_model(model):
        # Residual connections and numbers of layers are at the outer side of a stack.
        outer = 1 if stack.outputs else -1
        drawings.append(_StackDrawing(axis, left + (_OUTER if outer < 0 else _INNER), outer))
        drawings[-1].draw_stack(stack)
        left += _OUTER + _INNER + _MIDDLE
    if len(drawings) == 2:
        encoder, decoder = drawings
        middle = (encoder.x + decoder.x) / 2
        start = [(encoder.x, encoder.y), (middle, encoder.y)]
        for height in decoder.memory_heights:
            end = [(middle, height), (decoder.x - _BOX / 2, height)]
            encoder.draw_line([*start, *end], arrow=True)
        encoder.draw_text(encoder.y + 0.14, "memory", size=style.LABEL_SIZE)
    width = left - _MIDDLE + _EDGE
    height = max(drawing.y for drawing in drawings) + _TITLE
    title = f"{type(model).__name__}, {count_parameters(model):,} parameters"
    style.draw_text(axis, width / 2, height - 0.25, title, size=style.HEADING_SIZE)
    figure.set_size_inches(width, height)
    axis.set(xlim=(0, width), ylim=(0, height))
    return figure


class _StackDrawing:
    """A stack that is drawn from bottom to top."""

    def __init__(self, axis: Axes, x: float, outer: int) -> None:
        self.axis = axis
        self.x = x  # the middle of the stack
        self.y = _CAPTION  # the height reached so far
        self.outer = outer  # the side of the residual connections, −1 or 1
        self.box_middle = 0.0  # height of the middle of the latest box
        self.memory_heights: list[float] = []  # of the boxes that read the memory

    def draw_stack(self, stack: StackSummary) -> None:
        """Draw the whole stack with its captions."""
        self.draw_text(0.38, stack.title, size=style.HEADING_SIZE, weight="bold")
        self.draw_text(0.15, f"{stack.num_parameters:,} parameters", color=style.GREY)
        self.draw_text(self.y - 0.12, stack.inputs, size=style.LABEL_SIZE)
        self.draw_modules(stack.modules_before)
        for group in stack.layer_groups:
            self.draw_layer_group(group, is_only=len(stack.layer_groups) == 1)
        self.draw_modules(stack.modules_after)
        self.advance(_GAP, arrow=bool(stack.outputs))
        self.draw_text(self.y + 0.12, stack.outputs, size=style.LABEL_SIZE)

    def draw_layer_group(self, group: LayerGroup, *, is_only: bool) -> None:
        """Draw a group of layers in a frame, with the number of layers beside it."""
        self.advance(_MARGIN)
        bottom = self.y
        self.advance(_MARGIN)
        for sublayer in group.sublayers:
            self.draw_sublayer(sublayer)
        self.advance(_MARGIN)
        left = self.x - (_INNER if self.outer > 0 else _HALF_FRAME)
        frame = (left, bottom), _HALF_FRAME + _INNER, self.y - bottom
        shape = BoxStyle.Round(pad=0, rounding_size=0.12)
        box = FancyBboxPatch(*frame, shape, fc=style.EMPTY, ec="none", zorder=0)
        self.axis.add_patch(box)

        single = group.first == group.last
        numbers = f"layer {group.first}" if single else f"layers {group.first}–{group.last}"
        number = f"× {group.last + 1}" if is_only else numbers
        size = style.HEADING_SIZE if is_only else style.LABEL_SIZE
        x = self.x + self.outer * (_HALF_FRAME + 0.1)
        options: style.Options = {"x": x, "ha": "left" if self.outer > 0 else "right"}
        middle = (bottom + self.y) / 2
        self.draw_text(middle + 0.2, number, size=size, weight="bold", **options)
        lines = [f"{group.num_parameters:,}", "parameters", *([] if single else ["each"])]
        for index, line in enumerate(lines):
            self.draw_text(middle - 0.1 - 0.17 * index, line, color=style.GREY, **options)

    def draw_sublayer(self, sublayer: SublayerSummary) -> None:
        """Draw a sublayer with its residual connection."""
        start = self.y
        self.draw_modules(sublayer.inside_residual)
        if sublayer.reads_memory:
            self.memory_heights.append(self.box_middle)
        self.advance(_GAP, arrow=True)
        plus = self.y + _PLUS
        side = self.x + self.outer * (_BOX / 2 + _BYPASS)
        end = self.x + self.outer * _PLUS
        self.draw_line([(self.x, start), (side, start), (side, plus), (end, plus)], arrow=True)
        self.axis.add_patch(Circle((self.x, plus), _PLUS, facecolor="white", edgecolor=style.BLACK))
        self.draw_text(plus, "+", size=style.TITLE_SIZE)
        self.y = plus + _PLUS
        self.draw_modules(sublayer.after_residual)
        self.advance(_GAP / 2)

    def draw_modules(self, modules: tuple[ModuleSummary, ...]) -> None:
        """Draw each module as a box, with an arrow to it."""
        for module in modules:
            self.advance(_GAP, arrow=True)
            lines = [line for fact in module.facts for line in textwrap.wrap(fact, width=34)]
            height = _LINE * (1 + len(lines)) + 2 * _PADDING
            corner, colour = (self.x - _BOX / 2, self.y), _COLOURS[module.kind]
            shape = BoxStyle.Round(pad=0, rounding_size=0.08)
            box = FancyBboxPatch(corner, _BOX, height, shape, fc=style.lighten(colour, 0.32))
            self.axis.add_patch(box).set(edgecolor=style.BLACK, linewidth=1)
            self.box_middle = self.y + height / 2
            self.y += height
            top = self.y - _PADDING - _LINE / 2
            self.draw_text(top, module.title, size=style.TEXT_SIZE, weight="bold")
            for number, line in enumerate(lines, start=1):
                self.draw_text(top - number * _LINE, line)

    def advance(self, length: float, *, arrow: bool = False) -> None:
        """Draw a line upwards."""
        self.draw_line([(self.x, self.y), (self.x, self.y + length)], arrow=arrow)
        self.y += length

    def draw_line(self, corners: list[tuple[float, float]], *, arrow: bool = False) -> None:
        """Draw a line through all corners."""
        shape: style.Options = {"arrowstyle": "-|>" if arrow else "-", "shrinkA": 0, "shrinkB": 0}
        shape |= {"mutation_scale": 10, "linewidth": 1.2, "joinstyle": "round"}
        self.axis.add_patch(FancyArrowPatch(path=Path(corners), color=style.BLACK, **shape))

    def draw_text(self, y: float, text: str, **options: Any) -> None:
        """Write a text in the middle of the stack, unless the options differ."""
        defaults: style.Options = {"x": self.x, "size": style.NOTE_SIZE, "color": style.BLACK}
        style.draw_text(self.axis, y=y, text=text, **defaults | options)


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
    target = summarize_embedding(model.target_embedding, is_shared=shared)
    head = summarize_head(model.head, model.target_embedding)
    encoder = summarize_stack(model.encoder, "source tokens", source, None)
    return encoder, summarize_stack(model.decoder, "target tokens", target, head)


def summarize_stack(
    stack: Encoder | Decoder, inputs: str, embedding: ModuleSummary, head: ModuleSummary | None
) -> StackSummary:
    """Summarize an encoder, which has no head, or a decoder."""
    before = (embedding, *summarize_position(stack.position))
    norm = ModuleSummary("norm", type(stack.norm).__name__)
    after = () if isinstance(stack.norm, nn.Identity) else (norm,)
    after, outputs = ((*after, head), "logits of the next token") if head else (after, "")
    title, parameters, groups = type(stack).__name__, count_parameters(stack), group_layers(stack)
    return StackSummary(title, parameters, inputs, before, groups, after, outputs)


def group_layers(stack: Encoder | Decoder) -> tuple[LayerGroup, ...]:
    """Group consecutive layers of a stack that have the same modules."""
    layers = []
    for number, layer in enumerate(cast(Sequence[TransformerLayer], stack.layers)):
        sublayers = [x for x in layer.children() if isinstance(x, Sublayer)]
        sources = stack.kv_sources[number]
        summaries = (
            [summarize_parallel(sublayers[0], sublayers[1], sources)]
            if layer.is_parallel
            else [summarize_sublayer(x, sources) for x in sublayers]
        )
        layers.append(LayerGroup(number, number, count_parameters(layer), tuple(summaries)))
    groups = [list(group) for _, group in groupby(layers, key=lambda layer: layer[2:])]
    return tuple(group[0]._replace(last=group[-1].last) for group in groups)


def summarize_sublayer(sublayer: Sublayer, kv_sources: KVSources) -> SublayerSummary:
    """Summarize a sublayer, with its norm where the model has it."""
    if isinstance(sublayer, AttentionSublayer):
        reads_memory = sublayer.role == "cross"
        module = summarize_attention(sublayer.branches, kv_sources[reads_memory])
    else:
        module, reads_memory = summarize_feed_forward(cast(FeedForward, sublayer)), False
    return surround_by_norms(sublayer, module, reads_memory=reads_memory)


def summarize_parallel(
    attention: Sublayer, feed_forward: Sublayer, kv_sources: KVSources
) -> SublayerSummary:
    """Summarize attention and feed-forward that read the same norm, as one sublayer."""
    first = summarize_attention(cast(AttentionSublayer, attention).branches, kv_sources[0])
    second = summarize_feed_forward(cast(FeedForward, feed_forward))
    both = ModuleSummary(
        first.kind, f"{first.title} + {second.title}", (*first.facts, *second.facts)
    )
    return surround_by_norms(attention, both, reads_memory=False)


def surround_by_norms(
    sublayer: Sublayer, module: ModuleSummary, *, reads_memory: bool
) -> SublayerSummary:
    """Summarize a sublayer by its module, with the norms where it has them."""
    norm = ModuleSummary("norm", type(sublayer.norm).__name__)
    orders: dict[NormOrder, tuple[tuple[ModuleSummary, ...], tuple[ModuleSummary, ...]]] = {
        "pre": ((norm, module), ()),
        "post": ((module,), (norm,)),
        "sandwich": ((norm, module, norm), ()),
        "res_post": ((module, norm), ()),
    }
    return SublayerSummary(*orders[sublayer.norm_order], reads_memory)


def summarize_attention(branches: Sequence[Attention], kv_source: int | None) -> ModuleSummary:
    """Summarize the attention of a layer, or several mechanisms that stand side by side."""
    role = branches[0].role
    title = "cross-attention" if role == "cross" else f"{role} self-attention"
    facts = [*chain(*map(attention_facts, branches))]
    if branches[0].reads_kv:
        facts.append(f"reads keys and values of layer {kv_source}")
    return ModuleSummary("attention", title, tuple(facts))


def attention_facts(attention: Attention) -> list[str]:
    """Return mechanism, heads, window, what extends projections, and encoding of an attention."""
    mechanism = f"{attention.card.name}, {pluralize(attention.heads, 'head')}"
    if attention.kv_heads != attention.heads:
        mechanism += f", {attention.kv_heads} of keys and values"
    facts = [mechanism]
    if attention.window is not None:
        facts.append(f"window of {pluralize(attention.window, 'token')}")
    if convolutions := projection_convolutions(attention):
        size = pluralize(convolutions[0].kernel_size, "token")
        facts.append(f"projections convolved over {size}")
    if any(projection.mixing is not None for projection in token_projections(attention)):
        facts.append("mixes values of layer 0")
    if sites := position_sites(attention):
        acts_on = " and ".join(SITES[site] for site in sites)
        facts.append(f"{attention.position.card.name} on {acts_on}")
    return facts


def position_sites(attention: Attention) -> list[Site]:
    """Return where the encoding of an attention acts inside it."""
    position = attention.position
    sites = [site for site in position.card.acts if site not in BEFORE_ATTENTION]
    if "heads" in sites:
        device = next(attention.parameters()).device
        heads = torch.zeros(1, position.heads, 1, position.head_dim, device=device)
        positions = torch.ones(1, 1, dtype=torch.long, device=device)
        if position.rotate(heads, heads, positions)[0] is heads:  # It skips this layer.
            sites.remove("heads")
    return sites


def summarize_feed_forward(feed_forward: FeedForward) -> ModuleSummary:
    """Summarize widths and activation of a feed-forward network."""
    dim, ffn_dim = feed_forward.contract.out_features, feed_forward.contract.in_features
    facts = f"{dim:,} → {ffn_dim:,} → {dim:,}", feed_forward.activation
    return ModuleSummary("feed_forward", "feed-forward", facts)


def summarize_embedding(embedding: TokenEmbedding, *, is_shared: bool = False) -> ModuleSummary:
    """Summarize an embedding, which may share the table of the source."""
    size = f"{embedding.num_embeddings:,} × {embedding.embedding_dim:,}"
    table = "the source's table" if is_shared else f"{count_parameters(embedding):,} parameters"
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
