"""The pictures of every mask pattern and every score bias in the registries, as thumbnails."""

import math
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.inputs import resolve_positions
from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.factory import create_attention, create_position
from attention_zoo.masks import Columns, Mask, Visibility
from attention_zoo.tasks.configuration.conf_files import entry_options
from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.roles import render_mask
from attention_zoo.tasks.views.figures.seeding import fixed_seed
from attention_zoo.zoo import ATTENTION, POSITION, Role

_LENGTH, _HEADS, _DIM = 48, 4, 32
_MAX_OPTION = 4  # of options that count tokens: patterns must fit into so few tokens
_SIMILAR = 6  # neighbouring tokens that share content
_COLUMNS = 6
_SIZE = 1.35  # of a thumbnail, in inches
_HIDING = -1e5  # A bias below it hides a key, as no score makes up for it.


class Thumbnail(NamedTuple):
    """A small picture of a mask or a bias, with the text below it."""

    family: str  # heading of its rows
    name: str
    notes: Sequence[str]
    values: Tensor  # [q k], NaN for masked keys
    limit: float = 1.0  # value of the last colour


def draw_masks() -> Figure:
    """Draw all mask patterns of the zoo, by family.

    They are the fields of `Mask`, alone and together, and mechanisms with a pattern of their own:
    with a window, another `is_visible`, or weights of zero that depend on content. The last are one
    example: the weights of the first head of an untrained mechanism over random tokens.
    """
    thumbnails = [*mask_thumbnails(), *pattern_thumbnails()]
    figure, bar = draw_thumbnails("Masks", thumbnails, style.SEQUENTIAL, low=0.0)
    bar.set_ticks([0, 1], labels=["masked", "visible"])
    bar.set_label("by content: one example, relative to the largest weight of each row")
    return figure


def draw_biases() -> Figure:
    """Draw all score biases of the zoo, by family.

    They are what encodings add to the scores of the first two heads of causal attention. Learned
    biases are drawn as they are initialised; tables of zeros, which would show nothing, get random
    values. Biases that depend on content are one example, of random tokens.
    """
    figure, bar = draw_thumbnails("Score biases", bias_thumbnails(), style.DIVERGING, low=-1.0)
    bar.set_ticks([-1, 0, 1], labels=["less attention", "nothing added", "more attention"])
    bar.set_label("each encoding has its own scale; masked keys are grey")
    return figure


def draw_thumbnails(
    name: str, thumbnails: Sequence[Thumbnail], colours: Colormap, *, low: float
) -> tuple[Figure, Colorbar]:
    """Draw thumbnails, which are sorted by family, in rows, and a colour bar below.

    Each family starts a new row. The first colour is for `low` times the limit of a thumbnail.
    """
    families = [list(group) for _, group in groupby(thumbnails, key=attrgetter("family"))]
    rows = sum(math.ceil(len(family) / _COLUMNS) for family in families)
    figure = style.new_figure(_COLUMNS * (_SIZE + 0.16), rows * (_SIZE + 0.75) + 1.2)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.09)
    title = f"{name}: a row for each query, a column for each key"
    figure.suptitle(title, fontsize=style.HEADING_SIZE)
    grid = figure.add_gridspec(rows, _COLUMNS)
    first_row = 0
    for family in families:
        for index, thumbnail in enumerate(family):
            row, column = divmod(index, _COLUMNS)
            axis = figure.add_subplot(grid[first_row + row, column])
            scale = Normalize(low * thumbnail.limit, thumbnail.limit)
            axis.imshow(thumbnail.values.numpy(), colours, scale, interpolation="nearest")
            axis.set(xticks=[], yticks=[], facecolor=style.EMPTY)
            text = "\n".join([thumbnail.name, *thumbnail.notes])
            axis.set_xlabel(text, fontsize=style.NOTE_SIZE)
            if index == 0:
                size = style.LABEL_SIZE
                axis.set_title(thumbnail.family, loc="left", fontsize=size, fontweight="bold")
        first_row += math.ceil(len(family) / _COLUMNS)
    mappable = ScalarMappable(Normalize(low, 1), colours)
    bar = figure.colorbar(mappable, ax=figure.axes, location="bottom", aspect=30, shrink=0.5)
    return figure, bar


def mask_thumbnails() -> list[Thumbnail]:
    """Return a thumbnail of every field of `Mask`, and of some that are often combined."""
    positions = torch.arange(_LENGTH)[None, :]
    key_mask, ids = positions < 2 * _LENGTH // 3, positions // (_LENGTH // 3)
    fields: list[dict[str, Any]] = [{}, {"window": 3 * _MAX_OPTION}]
    fields += [{"key_mask": key_mask}, {"segment_ids": ids}]
    masks = [Mask(causal=causal, **field) for field in fields for causal in (False, True)]
    masks.append(Mask(segment_ids=ids, query_segment_ids=ids.flip(1)))
    thumbnails = []
    for mask in masks:
        first, *others = mask.names or ("no field is set",)
        visible = render_mask(mask, _LENGTH, _LENGTH).float()
        notes = [f"+ {name}" for name in others]
        thumbnails.append(Thumbnail("fields of Mask", first, notes, visible))
    return thumbnails


@torch.no_grad()
def pattern_thumbnails() -> list[Thumbnail]:
    """Return a thumbnail of every mechanism with its own pattern, sorted by family."""
    thumbnails = []
    for name in ATTENTION:
        attention = create_small_attention(name)
        family = entry_family(type(attention))
        weights, others = (attention.attention_map(sample_tokens(seed))[0, 0] for seed in (1, 2))
        if attention.card.chooses or not torch.equal(weights == 0, others == 0):
            # By chance, a query may have no visible key.
            relative = weights / weights.amax(dim=1, keepdim=True).clamp(min=1e-9)
            notes = f"{attention.role}, by content"
            thumbnails.append(Thumbnail(family, name, [notes], relative))
        elif attention.window or type(attention).is_visible is not Attention.is_visible:
            visible = (weights != 0).float()
            thumbnails.append(Thumbnail(family, name, [attention.role], visible))
    return sorted(thumbnails, key=attrgetter("family"))


def bias_thumbnails() -> list[Thumbnail]:
    """Return thumbnails of every encoding that acts on scores, sorted by family."""
    causal = render_mask(Mask(causal=True), _LENGTH, _LENGTH)
    thumbnails = []
    for card in map(POSITION.card, POSITION):
        if not {"scores", "content"} & {*card.acts}:
            continue
        bias, learned = sample_bias(card.name)
        kinds = ["learned"] if learned else []
        if "content" in card.acts:
            kinds.append("by content")
        # A bias that hides a key is as blank as a key of the future.
        bias = bias.masked_fill(~causal | (bias < _HIDING), torch.nan)[:2]
        limit = bias.nan_to_num().abs().max().item()
        family = entry_family(POSITION[card.name])
        for head, values in enumerate(bias):
            notes = f"head {head}, up to ±{limit:.2g}", ", ".join(kinds)
            thumbnails.append(Thumbnail(family, card.name, notes, values, limit or 1.0))
    return sorted(thumbnails, key=attrgetter("family"))


def create_small_attention(name: str) -> Attention:
    """Return a mechanism as global attention, if it can be, with small numbers as options."""
    options = entry_options("attention", name, heads=_HEADS)
    for option, value in options.items():
        if type(value) is int and option != "max_length":
            # Odd numbers stay odd and even ones even.
            options[option] = min(value, _MAX_OPTION + value % 2)
    role: Role = "global" if "global" in ATTENTION.card(name).roles else "causal"
    with fixed_seed():
        return create_attention(name, dim=_DIM, role=role, **options).eval()


@torch.no_grad()
def sample_bias(name: str) -> tuple[Tensor, bool]:
    """Return the bias [h q k] of an encoding over random tokens, and whether it is learned."""
    with fixed_seed():
        attention = create_attention("multi_head", dim=_DIM, role="causal", heads=_HEADS)
        assert isinstance(attention, SoftmaxAttention)
        options = entry_options("position", name, heads=_HEADS)
        position = create_position(name, **attention.position_sizes, **options)
        attention.attach_position(position)
        for parameter in position.parameters():
            if not parameter.any():
                nn.init.normal_(parameter)
    tokens, row = sample_tokens(1), Columns(0, _LENGTH)
    qkv = attention.project_qkv(tokens, None, resolve_positions(tokens), None)
    causal = Visibility(mask=Mask(causal=True), rows=row, columns=row)
    bias = attention.score_bias(qkv, causal)
    assert bias is not None
    return bias[0], any(True for _ in position.parameters())


def sample_tokens(seed: int) -> Tensor:
    """Return normal numbers [1 t d], similar for neighbours, because text is no white noise."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(1, _LENGTH + _SIMILAR - 1, _DIM, generator=generator)
    return numbers.unfold(1, _SIMILAR, 1).sum(-1) / math.sqrt(_SIMILAR)


def entry_family(entry: type) -> str:
    """Return the name of the package that an entry is in."""
    return entry.__module__.split(".")[-2]
