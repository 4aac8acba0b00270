"""The pictures of multi-head attention: how heads are split and joined, and two trained heads."""

from itertools import combinations
from typing import Any, NamedTuple

import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.errors import UserError
from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.seeding import fixed_seed

TOKENS, DIM, HEADS = 5, 12, 3
COLOURS = (style.BLUE, style.RED, style.GREEN)  # of the heads
CELL, GAP = 0.17, 0.16  # inches


class MultiHeadSteps(NamedTuple):
    """All intermediate results of multi-head attention for one sequence."""

    queries: Tensor  # [t d], likewise keys and values
    keys: Tensor
    values: Tensor
    weights: Tensor  # [h t t]
    head_outputs: Tensor  # [h t c]
    concatenated: Tensor  # [t d]
    output: Tensor  # [t d]


@torch.inference_mode()
def compute_multi_head(attention: Attention, x: Tensor) -> MultiHeadSteps:
    """Compute the steps of an attention without shared key/value heads, over x [t d]."""
    heads = attention.project_query(x[None]), *attention.project_key_value(x[None])
    queries, keys, values = (rearrange(part[0], "h t c -> t (h c)") for part in heads)
    weights = attention.attention_map(x[None])
    outputs = weights @ attention.values(x[None])
    concatenated = rearrange(outputs[0], "h t c -> t (h c)")
    output = attention.project_output(outputs, x[None])[0]
    return MultiHeadSteps(queries, keys, values, weights[0], outputs[0], concatenated, output)


def create_example() -> tuple[Attention, Tensor]:
    """Return an untrained attention, and an input for it, [t d]."""
    with fixed_seed():
        attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="global")
        return attention, 3 * torch.randn(TOKENS, DIM)


def draw_multi_head() -> Figure:
    """Draw queries, keys and values, split into three heads; their outputs, joined."""
    steps = compute_multi_head(*create_example())
    figure, axis = style.new_canvas(10.5, 4.5)
    wide, square, narrow = DIM * CELL, TOKENS * CELL, DIM // HEADS * CELL
    tops = (3.4, 2.2, 1.0)  # of the rows, in inches
    x_projected, x_split, x_weights, x_outputs, x_joined = 0.2, 2.9, 5.75, 7.0, 8.25
    per_head = f"{HEADS} × {TOKENS} × "
    for x, title, shape in (
        (x_projected + wide / 2, "projected", f"{TOKENS} × {DIM}"),
        (x_split + 1.5 * narrow + GAP, "split", f"{per_head}{DIM // HEADS}"),
        (x_weights + square / 2, "weights", f"{per_head}{TOKENS}"),
        (x_outputs + narrow / 2, "sums of V", f"{per_head}{DIM // HEADS}"),
        (x_joined + wide / 2, "joined", f"{TOKENS} × {DIM}"),
    ):
        style.draw_text(axis, x, 4.26, title, size=style.TITLE_SIZE, fontweight="bold")
        style.draw_text(axis, x, 4.0, f"[{shape}]", color=style.GREY)

    projections = list(zip("QKV", steps[:3], strict=True))
    for (name, matrix), top in zip(projections, tops, strict=True):
        draw_heads(axis, matrix, x_projected, top)
        style.draw_text(axis, x_projected + wide / 2, top + 0.13, name)
    for head, (colour, top) in enumerate(zip(COLOURS, tops, strict=True)):
        for index, (name, matrix) in enumerate(projections):
            left = x_split + index * (narrow + GAP)
            draw_shaded(axis, matrix.chunk(HEADS, dim=1)[head], left, top, colour)
            style.draw_text(axis, left + narrow / 2, top + 0.13, f"{name}{'₀₁₂'[head]}")
        weights = steps.weights[head].tolist()
        style.draw_matrix(axis, weights, (x_weights, top), CELL, style.SEQUENTIAL)
        draw_shaded(axis, steps.head_outputs[head], x_outputs, top, colour)
        options = {"color": colour, "fontweight": "bold"}
        style.draw_text(axis, x_weights + square / 2, top + 0.13, f"head {head}", **options)
    draw_heads(axis, steps.concatenated, x_joined, 3.05)
    draw_shaded(axis, steps.output, x_joined, 1.3, style.BLACK)
    style.draw_text(axis, x_joined + wide / 2, 1.43, f"output  [{TOKENS} × {DIM}]")
    style.draw_text(axis, x_joined + wide / 2 + 0.3, 1.87, "· W$_O$")

    middle = tops[1] - square / 2
    for start, stop in (
        ((x_projected + wide + 0.12, middle), (x_split - 0.12, middle)),
        ((x_split + 3 * narrow + 2 * GAP + 0.08, middle), (x_weights - 0.1, middle)),
        ((x_weights + square + 0.06, middle), (x_outputs - 0.08, middle)),
        ((x_outputs + narrow + 0.1, 2.62), (x_joined - 0.1, 2.62)),
        ((x_joined + wide / 2, 2.1), (x_joined + wide / 2, 1.62)),
    ):
        style.draw_arrow(axis, start, stop, color=style.GREY, linewidth=1.3)
    return figure


def draw_heads(axis: Axes, matrix: Tensor, left: float, top: float) -> None:
    """Draw a matrix [t d] with the columns of each head in its colour."""
    for head, (part, colour) in enumerate(zip(matrix.chunk(HEADS, 1), COLOURS, strict=True)):
        draw_shaded(axis, part, left + head * part.shape[1] * CELL, top, colour)


def draw_shaded(axis: Axes, matrix: Tensor, left: float, top: float, colour: str) -> None:
    """Draw a matrix in shades of a colour; the largest absolute value has the full colour."""
    largest = matrix.abs().max().item()

    def shade(value: float) -> tuple[float, ...]:
        return style.lighten(colour, 0.12 + 0.88 * abs(value) / largest)

    style.draw_matrix(axis, matrix.tolist(), (left, top), CELL, shade)


def find_most_different_heads(layers: list[Tensor]) -> tuple[int, int, int]:
    """Return the layer [h q k] and its two heads a and b with the largest mean of ½ Σ_k |a − b|."""
    distances = {
        (layer, one, other): (weights[one] - weights[other]).abs().sum(-1).mean().item() / 2
        for layer, weights in enumerate(layers)
        for one, other in combinations(range(len(weights)), 2)
    }
    return max(distances, key=lambda pair: distances[pair])


def draw_two_heads(task: Any, line: str) -> Figure:
    """Draw two heads of a layer over the same line, as lines from token to token.

    The layer and the heads are those of the encoder of a `TranslationTask` that differ most.
    """
    record: AttentionRecord = task.attend(line)
    layers = record.maps["encoder"]
    if all(len(weights) < 2 for weights in layers):
        raise UserError("two heads are drawn side by side, but no layer of this encoder has two.")
    layer, *heads = find_most_different_heads(layers)
    tokens = record.source_tokens
    figure = style.new_figure(9.4, 0.34 * len(tokens) + 1.0)
    for axis, head, colour in zip(figure.subplots(1, 2), heads, COLOURS, strict=False):
        draw_lines(axis, layers[layer][head], tokens, colour)
        title = f"encoder, layer {layer}, head {head}"
        axis.set_title(title, fontsize=style.TITLE_SIZE)
    return figure


def draw_lines(axis: Axes, weights: Tensor, tokens: list[str], colour: str) -> None:
    """Draw lines from each query at the left to the keys at the right, by their weights [q k]."""
    for query, row in enumerate(weights.tolist()):
        for key, weight in enumerate(row):
            if weight > 0.04:
                options = {"linewidth": 0.5 + 3.5 * weight, "alpha": min(1.0, 0.1 + weight)}
                axis.plot([0, 1], [query, key], color=colour, solid_capstyle="round", **options)
    for x, side, name in ((-0.04, "right", "query"), (1.04, "left", "key")):
        for index, token in enumerate(tokens):
            style.draw_token(axis, x, index, token, ha=side)
        style.draw_token(axis, x, -1.1, name, ha=side, color=style.GREY)
    axis.set(xlim=(-0.45, 1.45), ylim=(len(tokens) - 0.4, -1.5))
    axis.set_axis_off()
