"""Several heads: what is split and joined, and two of them side by side."""

from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.errors import UserError
from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures.drawing import (
    Paint,
    draw_cells,
    new_sheet,
    of_weight,
    same_draw,
)
from attention_zoo.tasks.views.figures.fonts import families, legible
from attention_zoo.tasks.views.figures.style import BLACK, BLUE, GREEN, RED, SOFT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS, DIM, HEADS = 5, 12, 3
COLOURS = (BLUE, RED, GREEN)  # of the heads
SUBSCRIPTS = "₁₂₃"
SIZE, GAP = 0.17, 0.16  # of a cell and between matrices, in inches


class Parts(NamedTuple):
    """What multi-head attention computes on its way, of one sequence."""

    queries: Tensor  # [t d], likewise keys and values
    keys: Tensor
    values: Tensor
    weights: Tensor  # [h t t]
    sums: Tensor  # [h t c], of values
    joined: Tensor  # [t d]
    output: Tensor  # [t d]


@torch.inference_mode()
def compute_parts(attention: Attention, x: Tensor) -> Parts:
    """The parts of an attention whose heads have keys and values of their own, over x [t d]."""
    heads = attention.project_query(x[None]), *attention.project_key_value(x[None])
    queries, keys, values = (rearrange(part[0], "h t c -> t (h c)") for part in heads)
    weights = attention.attention_map(x[None])
    sums = weights @ attention.values(x[None])
    joined = rearrange(sums[0], "h t c -> t (h c)")
    output = attention.project_output(sums, x[None])[0]
    return Parts(queries, keys, values, weights[0], sums[0], joined, output)


def new_example() -> tuple[Attention, Tensor]:
    """An attention before training, and vectors for it to look at, [t d]."""
    with same_draw():
        attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="global")
        return attention, 3 * torch.randn(TOKENS, DIM)


def split_and_joined() -> "Figure":
    """Queries, keys and values are split by columns, a colour a head; the heads attend apart; what
    they find is joined.
    """
    parts = compute_parts(*new_example())
    figure, axis = new_sheet(10.5, 4.5)
    whole, tall, narrow = DIM * SIZE, TOKENS * SIZE, DIM // HEADS * SIZE
    tops = (3.4, 2.2, 1.0)  # of the rows, in inches
    x_whole, x_split, x_weights, x_sums, x_joined = 0.2, 2.9, 5.75, 7.0, 8.25

    per_head = f"{HEADS} × {TOKENS} × "
    for x, title, shape in (
        (x_whole + whole / 2, "projected", f"{TOKENS} × {DIM}"),
        (x_split + 1.5 * narrow + GAP, "split", f"{per_head}{DIM // HEADS}"),
        (x_weights + tall / 2, "weights", f"{per_head}{TOKENS}"),
        (x_sums + narrow / 2, "sums of V", f"{per_head}{DIM // HEADS}"),
        (x_joined + whole / 2, "joined", f"{TOKENS} × {DIM}"),
    ):
        say(axis, title, x, 4.26, fontsize=12, fontweight="bold")
        say(axis, f"[{shape}]", x, 4.0, color=SOFT)

    for name, numbers, top in zip("QKV", parts[:3], tops, strict=True):
        draw_by_head(axis, numbers, x_whole, top)
        say(axis, name, x_whole + whole / 2, top + 0.13)
    for head, (colour, top) in enumerate(zip(COLOURS, tops, strict=True)):
        for place, (name, numbers) in enumerate(zip("QKV", parts[:3], strict=True)):
            left = x_split + place * (narrow + GAP)
            own = numbers.chunk(HEADS, dim=1)[head]
            draw_cells(axis, own, left, top, size=SIZE, paint=tint(colour, own))
            say(axis, f"{name}{SUBSCRIPTS[head]}", left + narrow / 2, top + 0.13)
        weights, sums = parts.weights[head], parts.sums[head]
        draw_cells(axis, weights, x_weights, top, size=SIZE, paint=of_weight)
        draw_cells(axis, sums, x_sums, top, size=SIZE, paint=tint(colour, sums))
        bold = {"color": colour, "fontweight": "bold"}
        say(axis, f"head {head + 1}", x_weights + tall / 2, top + 0.13, **bold)
    draw_by_head(axis, parts.joined, x_joined, 3.05)
    draw_cells(axis, parts.output, x_joined, 1.3, size=SIZE, paint=tint(BLACK, parts.output))
    say(axis, f"output  [{TOKENS} × {DIM}]", x_joined + whole / 2, 1.43)
    say(axis, "· W$_O$", x_joined + whole / 2 + 0.3, 1.87)

    middle = tops[1] - tall / 2
    draw_arrow(axis, (x_whole + whole + 0.12, middle), (x_split - 0.12, middle))
    draw_arrow(axis, (x_split + 3 * narrow + 2 * GAP + 0.08, middle), (x_weights - 0.1, middle))
    draw_arrow(axis, (x_weights + tall + 0.06, middle), (x_sums - 0.08, middle))
    draw_arrow(axis, (x_sums + narrow + 0.1, 2.62), (x_joined - 0.1, 2.62))
    draw_arrow(axis, (x_joined + whole / 2, 2.1), (x_joined + whole / 2, 1.62))
    return figure


def say(axis: "Axes", text: str, x: float, y: float, **style: Any) -> None:
    """A text around a point of the sheet."""
    shared: dict[str, Any] = {"fontsize": 10, "ha": "center", "va": "center"}
    axis.text(x, y, text, **shared | style)


def draw_arrow(axis: "Axes", start: tuple[float, float], stop: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": SOFT, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", xy=stop, xytext=start, arrowprops=style)


def draw_by_head(axis: "Axes", numbers: Tensor, left: float, top: float) -> None:
    """A matrix [t d], with the columns of each head in its colour."""
    for head, (own, colour) in enumerate(zip(numbers.chunk(HEADS, dim=1), COLOURS, strict=True)):
        at = left + head * own.shape[1] * SIZE
        draw_cells(axis, own, at, top, size=SIZE, paint=tint(colour, own))


def tint(colour: str, numbers: Tensor) -> Paint:
    """From nearly white to a colour, by the size of a number among others."""
    from matplotlib.colors import to_rgb

    most = numbers.abs().max().item()

    def paint(value: float) -> tuple[float, ...]:
        share = 0.12 + 0.88 * abs(value) / most
        return tuple(1 - share * (1 - part) for part in to_rgb(colour))

    return paint


def most_different(layers: list[Tensor]) -> tuple[int, int, int]:
    """The layer and its two heads whose weights [h q k] differ most: ½ Σ |a − b|, in the mean over
    queries.
    """
    distances = {
        (layer, one, other): (maps[one] - maps[other]).abs().sum(-1).mean().item() / 2
        for layer, maps in enumerate(layers)
        for one, other in combinations(range(len(maps)), 2)
    }
    return max(distances, key=lambda pair: distances[pair])


def two_heads(task: Any, line: str) -> "Figure":
    """Two heads of one layer of the encoder over a line, those that differ most.

    Args:
        task: a trained `TranslationTask`.
        line: what it reads.

    Raises:
        UserError: no layer of the encoder has two heads.
    """
    reading: AttentionRecord = task.attend(line)
    layers = reading.maps["encoder"]
    if all(len(maps) < 2 for maps in layers):
        raise UserError("two heads are shown side by side, and no layer of this encoder has two.")
    layer, *heads = most_different(layers)
    tokens = [legible(token) for token in reading.source_tokens]
    figure = new_figure(9.4, 0.34 * len(tokens) + 1.0)
    for axis, head, colour in zip(figure.subplots(1, 2), heads, (BLUE, RED), strict=True):
        draw_links(axis, layers[layer][head], tokens, colour)
        axis.set_title(f"encoder, layer {layer + 1}, head {head + 1}", fontsize=12)
    return figure


def draw_links(axis: "Axes", weights: Tensor, tokens: list[str], colour: str) -> None:
    """Lines from each token at the left to those at the right that it looks at, [q k]."""
    for query, row in enumerate(weights.tolist()):
        for key, weight in enumerate(row):
            if weight > 0.04:
                style = {"linewidth": 0.5 + 3.5 * weight, "alpha": min(1.0, 0.1 + weight)}
                axis.plot([0, 1], [query, key], color=colour, solid_capstyle="round", **style)
    for x, side, name in ((-0.04, "right", "looks"), (1.04, "left", "is looked at")):
        for place, token in enumerate(tokens):
            text = axis.text(x, place, token, ha=side, va="center_baseline", fontsize=10.5)
            text.set(family=families(), parse_math=False)
        axis.text(x, -1.1, name, ha=side, va="center_baseline", fontsize=10, color=SOFT)
    axis.set(xlim=(-0.45, 1.45), ylim=(len(tokens) - 0.4, -1.5))
    axis.set_axis_off()
