"""Every mask pattern and every score bias of the zoo, as thumbnails that walk the registries."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention, resolve_positions
from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.factory import create_attention, create_position
from attention_zoo.masks import Mask, Visibility
from attention_zoo.tasks.configuration.entry_configs import entry_options
from attention_zoo.tasks.views.figures.style import EMPTY, SIGNED, WEIGHTS, new_figure
from attention_zoo.zoo import ATTENTION, POSITION, Role

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOKENS, _HEADS, _DIM = 48, 4, 32
_SMALL = 4  # to what options that count tokens are lowered, to show among so few
_ALIKE = 6  # neighbouring tokens that share content
_COLUMNS = 6
_SHOWN_HEADS = 2  # of a bias
_THUMBNAIL = 1.35  # inches


class Thumbnail(NamedTuple):
    """A picture, and what is said below it."""

    family: str  # under which it stands
    name: str
    notes: tuple[str, ...]
    values: Tensor  # [q k], not a number where a query does not see a key
    scale: float  # the largest value that has a colour


def masks() -> "Figure":
    """Who sees whom: fields of `Mask`, alone and together, and mechanisms with a pattern of their
    own.

    These have a window, a `is_visible`, or a choice by their card; or they give no weight to some keys
    for what the tokens hold. Each is drawn as global attention where it can be, else as causal
    attention, with options small enough for the picture. What depends on content is one real draw,
    of random tokens and an untrained mechanism: its first head, in shares of each row's largest
    weight.
    """
    figure, bar = sheet(
        [*mask_thumbnails(), *pattern_thumbnails()],
        "Who sees whom: a row for each query, a column for each key",
        colours=WEIGHTS,
        low=0.0,
    )
    bar.set_ticks([0, 1], labels=["not seen", "seen"])
    bar.set_label("by content: one draw, in shares of each row's largest weight")
    return figure


def biases() -> "Figure":
    """What encodings add to the scores of causal attention: those that act on them by their card,
    by places or by content.

    Of each the first two heads, on a scale of its own. What is learned is as training starts from
    it; tables that start at zero would show nothing, and are drawn at random. What depends on
    content is one real draw, of random tokens.
    """
    figure, bar = sheet(
        list(bias_thumbnails()),
        "What is added to scores: a row for each query, a column for each key",
        colours=SIGNED,
        low=-1.0,
    )
    bar.set_ticks([-1, 0, 1], labels=["less attention", "nothing added", "more attention"])
    bar.set_label("each encoding on a scale of its own; unseen keys are grey")
    return figure


def sheet(
    thumbnails: list[Thumbnail], title: str, *, colours: str, low: float
) -> tuple["Figure", Any]:
    """Thumbnails in rows, each family from a new one on, and their colour bar.

    `low` is the least value that has a colour, in multiples of a thumbnail's scale.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    families = [list(group) for _, group in groupby(thumbnails, key=lambda one: one.family)]
    rows = sum(math.ceil(len(family) / _COLUMNS) for family in families)
    figure = new_figure(_COLUMNS * (_THUMBNAIL + 0.16), rows * (_THUMBNAIL + 0.75) + 1.2)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.09)
    grid = figure.add_gridspec(rows, _COLUMNS)
    row = 0
    for family in families:
        for place, one in enumerate(family):
            axis = figure.add_subplot(grid[row + place // _COLUMNS, place % _COLUMNS])
            axis.imshow(
                one.values.numpy(),
                cmap=colours,
                vmin=low * one.scale,
                vmax=one.scale,
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[], facecolor=EMPTY)
            axis.set_xlabel("\n".join([one.name, *one.notes]), fontsize=9)
            if place == 0:
                axis.set_title(one.family, loc="left", fontsize=11, fontweight="bold")
        row += math.ceil(len(family) / _COLUMNS)
    figure.suptitle(title, fontsize=13)
    mappable = ScalarMappable(Normalize(low, 1), colours)
    bar = figure.colorbar(mappable, ax=figure.axes, location="bottom", aspect=30, shrink=0.5)
    return figure, bar


def mask_thumbnails() -> Iterator[Thumbnail]:
    place = torch.arange(_TOKENS)[None, :]
    third = _TOKENS // 3
    real, segment_ids = place < 2 * third, place // third
    for mask in (
        Mask(),
        Mask(causal=True),
        Mask(window=3 * _SMALL),
        Mask(causal=True, window=3 * _SMALL),
        Mask(key_mask=real),
        Mask(causal=True, key_mask=real),
        Mask(segment_ids=segment_ids),
        Mask(causal=True, segment_ids=segment_ids),
        Mask(segment_ids=segment_ids, query_segment_ids=segment_ids.flip(1)),
    ):
        first, *others = mask.names or ("no field is set",)
        notes = tuple(f"+ {name}" for name in others)
        yield Thumbnail("fields of Mask", first, notes, seen(mask).float(), 1.0)


def pattern_thumbnails() -> Iterable[Thumbnail]:
    """Of every mechanism that has a pattern of its own, by family."""
    found = []
    for name in ATTENTION:
        attention = small_attention(name)
        weights, others = (drawn_weights(attention, seed) for seed in (1, 2))
        by_content = attention.card.chooses or not torch.equal(weights == 0, others == 0)
        patterned = (
            attention.window is not None or type(attention).is_visible is not Attention.is_visible
        )
        if by_content:
            # A query may see nothing by chance.
            shares = weights / weights.amax(dim=1, keepdim=True).clamp(min=1e-9)
            notes = (f"{attention.role}, by content",)
            found.append(Thumbnail(family(type(attention)), name, notes, shares, 1.0))
        elif patterned:
            sees = (weights != 0).float()
            found.append(Thumbnail(family(type(attention)), name, (attention.role,), sees, 1.0))
    return sorted(found, key=lambda one: one.family)


def bias_thumbnails() -> Iterable[Thumbnail]:
    """Of every encoding that acts on scores, two heads, by family."""
    found = []
    for name in POSITION:
        acts = POSITION.card(name).acts
        if not {"scores", "content"} & set(acts):
            continue
        added, learned = drawn_bias(name)
        kinds = (["learned"] if learned else []) + (["by content"] if "content" in acts else [])
        shown = added.masked_fill(~seen(Mask(causal=True)), torch.nan)[:_SHOWN_HEADS]
        scale = shown.nan_to_num().abs().max().item()
        for head, values in enumerate(shown, start=1):
            notes = f"head {head}, up to ±{scale:.2g}", ", ".join(kinds)
            found.append(Thumbnail(family(POSITION[name]), name, notes, values, scale))
    return sorted(found, key=lambda one: one.family)


def small_attention(name: str) -> Attention:
    """A mechanism as global attention, if it can be, with small numbers for its options.

    Odd numbers stay odd, and even ones even. A longest sequence stays as long as it is.
    """
    options = {
        option: min(value, _SMALL + value % 2) if counts(option, value) else value
        for option, value in entry_options("attention", name, heads=_HEADS).items()
    }
    role: Role = "global" if "global" in ATTENTION.card(name).roles else "causal"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_attention(name, dim=_DIM, role=role, **options).eval()


def counts(option: str, value: Any) -> bool:
    return type(value) is int and option != "max_length"


@torch.no_grad()
def drawn_weights(attention: Attention, seed: int) -> Tensor:
    """The weights [q k] of the first head over random tokens."""
    return attention.attention_map(random_tokens(seed))[0, 0]


@torch.no_grad()
def drawn_bias(name: str) -> tuple[Tensor, bool]:
    """What an encoding adds to scores [h q k] over random tokens; whether it is learned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = create_attention("multi_head", dim=_DIM, role="causal", heads=_HEADS)
        assert isinstance(attention, SoftmaxAttention)
        options = entry_options("position", name, heads=_HEADS)
        position = create_position(name, **attention.position_sizes, **options)
        attention.attach_position(position)
        for parameter in position.parameters():
            if not parameter.any():
                nn.init.normal_(parameter)
    tokens, row = random_tokens(1), range(_TOKENS)
    qkv = attention.project_qkv(tokens, None, resolve_positions(tokens), None)
    causal = Visibility(mask=Mask(causal=True), rows=row, columns=row)
    added = attention.score_bias(qkv, causal)
    assert added is not None
    return added[0], any(True for _ in position.parameters())


def random_tokens(seed: int) -> Tensor:
    """[1 t d], normal numbers. Neighbours are alike, as in text, or patterns would look like noise.

    Each is the sum of `_ALIKE` tokens of independent numbers, over √`_ALIKE`.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(1, _TOKENS + _ALIKE - 1, _DIM, generator=generator)
    return numbers.unfold(1, _ALIKE, 1).sum(-1) / math.sqrt(_ALIKE)


def seen(mask: Mask) -> Tensor:
    """The whole mask, [q k]."""
    whole = range(_TOKENS)
    visible = mask.dense(whole, whole, device=torch.device("cpu"))
    return (
        torch.ones(_TOKENS, _TOKENS, dtype=torch.bool)
        if visible is None
        else visible[0, 0].expand(_TOKENS, -1)
    )


def family(entry: type) -> str:
    """The name of the package in which an entry stands."""
    return entry.__module__.split(".")[-2]
