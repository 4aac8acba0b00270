"""The picture of self-attention step by step, with its numbers."""

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.figures import style

WORDS = ("I", "drink", "green", "tea")
# Made by hand, a row for each word.
VECTORS = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, -1.0], [-1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
CELL = 0.34  # inches
SKIPPED = "no scale, no softmax"
# The operators between matrices, and their widths in inches. The last fills two missing steps.
OPERATORS = {"·": 0.22, "=": 0.3, "/√3  =": 0.62, "softmax": 0.7, SKIPPED: 2.38}
# By name: values, colours, and the number of decimals.
Matrices = dict[str, tuple[Tensor, style.ColourMap, int]]


class AttentionSteps(NamedTuple):
    """All intermediate results of self-attention with one head."""

    queries: Tensor  # [t c], likewise keys and values
    keys: Tensor
    values: Tensor
    scores: Tensor  # QKᵀ, [t t]
    scaled_scores: Tensor  # QKᵀ/√c, [t t]
    weights: Tensor  # softmax(QKᵀ/√c), [t t]
    output: Tensor  # softmax(QKᵀ/√c) V, [t c]
    unnormalised_output: Tensor  # QKᵀ V, [t c]


def create_identity_attention(width: int) -> SoftmaxAttention:
    """Return self-attention with one head whose projections are identities: Q = K = V = x."""
    attention = create_attention("single_head", dim=width, role="global")
    assert isinstance(attention, SoftmaxAttention)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.copy_(torch.eye(width))
    return attention


@torch.no_grad()
def compute_steps(attention: SoftmaxAttention, x: Tensor) -> AttentionSteps:
    """Compute the steps of an attention with one head over words x [t d]."""
    queries = attention.project_query(x[None])[0, 0]
    keys, values = (part[0, 0] for part in attention.project_key_value(x[None]))
    scores = queries @ keys.T
    scaled = scores * attention.scale
    weights = scaled.softmax(-1)
    outputs = weights @ values, scores @ values
    return AttentionSteps(queries, keys, values, scores, scaled, weights, *outputs)


def draw_steps() -> Figure:
    """Draw QKᵀ V in numbers, and softmax(QKᵀ/√3) V in numbers."""
    steps = compute_steps(create_identity_attention(3), VECTORS)
    small, medium, large = map(signed_colours, (3.0, 10.0, 30.0))
    matrices: Matrices = {
        "Q": (steps.queries, small, 0),
        "Kᵀ": (steps.keys.T, small, 0),
        "V": (steps.values, small, 0),
        "QKᵀ": (steps.scores, medium, 0),
        "QKᵀ V": (steps.unnormalised_output, large, 0),
        "QKᵀ/√3": (steps.scaled_scores, medium, 1),
        "weights": (steps.weights, style.SEQUENTIAL, 2),
        "weights · V": (steps.output, small, 1),
    }
    figure, axis = style.new_canvas(10.0, 4.9)
    title = "Without scale and softmax: the larger the scores, the larger the outputs"
    parts = ["Q", "·", "Kᵀ", "=", "QKᵀ", SKIPPED, "·", "V", "=", "QKᵀ V"]
    draw_equation(axis, 4.0, title, parts, matrices)
    title = (
        "With them: every row of weights adds up to 1, so that outputs are averages of rows of V"
    )
    parts = ["Q", "·", "Kᵀ", "/√3  =", "QKᵀ/√3", "softmax", "weights", "·", "V", "=", "weights · V"]
    draw_equation(axis, 1.6, title, parts, matrices)
    return figure


def draw_equation(axis: Axes, top: float, title: str, parts: list[str], matrices: Matrices) -> None:
    """Draw an equation of matrices and operators from left to right."""
    options: style.Options = {"ha": "left", "va": "center_baseline", "fontweight": "bold"}
    style.draw_text(axis, 0.12, top + 0.62, title, size=style.TITLE_SIZE, **options)
    left = 0.62
    for row, word in enumerate(WORDS):
        style.draw_token(axis, left - 0.08, top - (row + 0.5) * CELL, word, ha="right")
    for part in parts:
        if part in matrices:
            values, colours, decimals = matrices[part]
            rows, columns = values.shape
            width = columns * CELL
            # The middles of all matrices are at one height.
            corner = left, top - (4 - rows) / 2 * CELL
            style.draw_matrix(axis, values.tolist(), corner, CELL, colours, decimals)
            name = f"{part}\n[{rows} × {columns}]"
            style.draw_text(axis, left + width / 2, top + 0.07, name, va="bottom")
        else:
            width = OPERATORS[part]
            colour = style.GREY if part == SKIPPED else style.BLACK
            options = {"va": "center_baseline", "size": style.LABEL_SIZE, "color": colour}
            style.draw_text(axis, left + width / 2, top - 2 * CELL, part, **options)
        left += width


def signed_colours(limit: float) -> style.ColourMap:
    """Return colours for numbers from −limit to limit, pale enough for black text on them."""
    return lambda value: style.DIVERGING(0.5 + 0.28 * value / limit)
