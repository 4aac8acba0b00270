"""Why scores are divided by √d: what grows with the width of queries and keys, and what fades."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_zoo.tasks.views.figures.drawing import plain, same_draw
from attention_zoo.tasks.views.figures.style import BLUE, GREEN, ORANGE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (4, 64, 1024)
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
KEYS, DRAWS = 16, 1000


def draw_scores(width: int, draws: int = DRAWS) -> Tensor:
    """q·k of random queries with `KEYS` random keys each, all of variance 1: [draws keys]."""
    with same_draw():
        q = torch.randn(draws, 1, width)
        k = torch.randn(draws, KEYS, width)
    return (q * k).sum(-1)


def largest_weight(scores: Tensor) -> float:
    """Of softmax over scores [draws keys], in the mean over draws."""
    return scores.softmax(-1).amax(-1).mean().item()


def gradient_norm(scores: Tensor) -> float:
    """‖∂ softmax(s) / ∂s‖ = ‖diag(w) − w wᵀ‖ at scores [draws keys], in the mean over draws."""
    weights = scores.softmax(-1)
    jacobian = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None, :]
    return torch.linalg.matrix_norm(jacobian).mean().item()


def why_scaled(draws: int = DRAWS) -> "Figure":
    """Distributions of scores, the largest weight and the gradient through softmax, by width.

    Args:
        draws: of a query and its keys, at every width.
    """
    drawn = {width: draw_scores(width, draws) for width in WIDTHS}
    scaled = {width: scores / math.sqrt(width) for width, scores in drawn.items()}
    figure = new_figure(9.4, 6.4)
    (first, second), (largest, gradient) = figure.subplots(2, 2)
    for axis, by_width, window_span, title in (
        (first, drawn, 60, "Scores q·k: wider vectors, larger scores"),
        (second, scaled, 4, "Scores q·k/√d: alike at every width"),
    ):
        for width, colour in zip(SHOWN, (BLUE, ORANGE, GREEN), strict=True):
            scores = by_width[width].flatten()
            label = f"d = {width}: deviation {scores.std():.0f}"
            style = {
                "bins": 40,
                "range": (-window_span, window_span),
                "density": True,
                "color": colour,
            }
            axis.hist(scores.numpy(), histtype="stepfilled", alpha=0.18, **style)
            axis.hist(scores.numpy(), histtype="step", linewidth=2, label=label, **style)
        axis.margins(y=0.5)
        axis.set(xlabel="score", ylabel="density", yticks=[])
        axis.set_title(title, fontsize=11.5)
        axis.legend(frameon=False, fontsize=9.5, loc="upper left", handlelength=1.2)
    for by_width, colour, name in ((drawn, RED, "without /√d"), (scaled, BLUE, "with /√d")):
        style = {"color": colour, "linewidth": 2.2, "marker": "o", "markersize": 4, "label": name}
        largest.plot(WIDTHS, [largest_weight(scores) for scores in by_width.values()], **style)
        gradient.plot(WIDTHS, [gradient_norm(scores) for scores in by_width.values()], **style)
    largest.set(ylim=(0, 1.02), ylabel=f"largest of {KEYS} weights")
    largest.set_title("Large scores: one key takes all the weight", fontsize=11.5)
    gradient.set(ylim=(0, None), ylabel="norm of ∂ weights / ∂ scores")
    gradient.set_title("Then next to no gradient is left to learn from", fontsize=11.5)
    for axis in (largest, gradient):
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
        axis.set_xlabel("d, the width of queries and keys")
        axis.legend(frameon=False, fontsize=10)
    for axis in figure.axes:
        plain(axis)
    return figure
