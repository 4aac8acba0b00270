"""Self-attention computed step by step, in numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.figures.drawing import (
    Paint,
    draw_cells,
    new_sheet,
    of_weight,
)
from attention_zoo.tasks.views.figures.style import BLACK, SIGNED, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = ("I", "drink", "green", "tea")
# Made by hand, a row a word.
VECTORS = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, -1.0], [-1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
SIZE = 0.34  # of a cell, in inches
SKIPPED = "no scale, no softmax"
# What stands between matrices, and the inches that it takes. The last one leaves two steps out.
GAPS = {"·": 0.22, "=": 0.3, "/√3  =": 0.62, "softmax": 0.7, SKIPPED: 2.38}


class Steps(NamedTuple):
    """What self-attention computes on its way, of one head: q and k are [t c], the rest [t t]
    or, what is added up of the values, [t c].
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scores: Tensor  # QKᵀ
    scaled: Tensor  # QKᵀ/√c
    weights: Tensor  # softmax(QKᵀ/√c)
    plain: Tensor  # QKᵀ V
    output: Tensor  # softmax(QKᵀ/√c) V


def identity_attention(width: int) -> SoftmaxAttention:
    """Self-attention with one head whose projections change nothing: Q = K = V = x."""
    attention = create_attention("single_head", dim=width, role="global")
    assert isinstance(attention, SoftmaxAttention)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.copy_(torch.eye(width))
    return attention


@torch.no_grad()
def compute_steps(attention: SoftmaxAttention, x: Tensor) -> Steps:
    """The steps of an attention with one head, over words x [t d]."""
    queries = attention.project_query(x[None])[0, 0]
    keys, values = (part[0, 0] for part in attention.project_key_value(x[None]))
    scores = queries @ keys.T
    scaled = scores * attention.scale
    weights = scaled.softmax(-1)
    return Steps(queries, keys, values, scores, scaled, weights, scores @ values, weights @ values)


class Block(NamedTuple):
    """A matrix of a row, with how its numbers are shown."""

    name: str
    numbers: Tensor
    paint: Paint
    digits: int


def step_by_step() -> "Figure":
    """softmax(QKᵀ/√3) V in numbers, and above it the same without scale and softmax."""
    steps = compute_steps(identity_attention(3), VECTORS)
    vectors, scores = signed(3.0), signed(10.0)
    queries = Block("Q", steps.queries, vectors, 0)
    keys = Block("Kᵀ", steps.keys.T, vectors, 0)
    values = Block("V", steps.values, vectors, 0)
    figure, axis = new_sheet(10.0, 4.9)
    draw_row(
        axis,
        4.0,
        "Without scale and softmax: the larger the scores, the larger the outputs",
        [
            *(queries, "·", keys, "=", Block("QKᵀ", steps.scores, scores, 0), SKIPPED),
            *("·", values, "=", Block("QKᵀ V", steps.plain, signed(30.0), 0)),
        ],
    )
    draw_row(
        axis,
        1.6,
        "With them: every row of weights adds up to 1, so that outputs are averages of rows of V",
        [
            *(queries, "·", keys, "/√3  =", Block("QKᵀ/√3", steps.scaled, scores, 1)),
            *("softmax", Block("weights", steps.weights, of_weight, 2)),
            *("·", values, "=", Block("weights · V", steps.output, vectors, 1)),
        ],
    )
    return figure


def draw_row(axis: "Axes", top: float, title: str, parts: Sequence[Block | str]) -> None:
    """Matrices and what stands between them, from left to right."""
    axis.text(0.12, top + 0.62, title, fontsize=12, fontweight="bold", va="center_baseline")
    left = 0.62
    for row, word in enumerate(WORDS):
        place = (left - 0.08, top - (row + 0.5) * SIZE)
        axis.text(*place, word, ha="right", va="center_baseline", fontsize=10)
    for part in parts:
        if isinstance(part, str):
            width = GAPS[part]
            place = (left + width / 2, top - 2 * SIZE)
            colour = SOFT if part == SKIPPED else BLACK
            axis.text(*place, part, ha="center", va="center_baseline", fontsize=11, color=colour)
        else:
            rows, columns = part.numbers.shape
            width = columns * SIZE
            # All share a middle, whatever their height.
            upper = top - (4 - rows) / 2 * SIZE
            draw_cells(
                *(axis, part.numbers, left, upper),
                size=SIZE,
                paint=part.paint,
                digits=part.digits,
            )
            name = f"{part.name}\n[{rows} × {columns}]"
            axis.text(left + width / 2, top + 0.07, name, ha="center", va="bottom", fontsize=10)
        left += width


def signed(most: float) -> Paint:
    """Colours for numbers between −most and most; pale, so that black figures can be read."""
    from matplotlib import colormaps

    return lambda value: colormaps[SIGNED](0.5 + 0.28 * value / most)
