"""The picture of why scores are divided by √d: the effect of the width of queries and keys."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.seeding import fixed_seed

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
KEYS = 16


def sample_scores(width: int, samples: int = 1000) -> Tensor:
    """Return q·k [samples keys] of random queries with `KEYS` keys each, all of variance 1."""
    with fixed_seed():
        q = torch.randn(samples, 1, width)
        k = torch.randn(samples, KEYS, width)
    return (q * k).sum(-1)


def largest_weight(scores: Tensor) -> float:
    """Return the largest softmax weight of scores [samples keys], averaged over samples."""
    return scores.softmax(-1).amax(-1).mean().item()


def jacobian_norm(scores: Tensor) -> float:
    """Return ‖∂ softmax(s) / ∂s‖ = ‖diag(w) − w wᵀ‖ of scores [samples keys], averaged."""
    weights = scores.softmax(-1)
    jacobian = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None, :]
    return torch.linalg.matrix_norm(jacobian).mean().item()


def draw_scaling() -> Figure:
    """Draw scores, the largest weight and the gradient, with and without the scale."""
    scores = {width: sample_scores(width) for width in WIDTHS}
    scaled = {width: scores[width] / math.sqrt(width) for width in WIDTHS}
    figure = style.new_figure(9.4, 6.4)
    (left, right), (weight, gradient) = figure.subplots(2, 2)
    draw_histograms(left, "Scores q·k: wider vectors, larger scores", scores, 60)
    draw_histograms(right, "Scores q·k/√d: alike at every width", scaled, 4)
    for by_width, colour, name in (
        (scores, style.RED, "without /√d"),
        (scaled, style.BLUE, "with /√d"),
    ):
        options = {"color": colour, "linewidth": 2.2, "marker": "o", "markersize": 4, "label": name}
        weight.plot(WIDTHS, [largest_weight(x) for x in by_width.values()], **options)
        gradient.plot(WIDTHS, [jacobian_norm(x) for x in by_width.values()], **options)
    weight.set(ylim=(0, 1.02), ylabel=f"largest of {KEYS} weights")
    weight.set(title="Large scores: one key takes all the weight")
    gradient.set(ylim=(0, None), ylabel="norm of ∂ weights / ∂ scores")
    gradient.set(title="Large scores: the gradient nearly vanishes")
    for axis in (weight, gradient):
        axis.set_xscale("log", base=2)
        axis.set_xticks(WIDTHS[::2], map(str, WIDTHS[::2]))
        axis.set_xlabel("d, the width of queries and keys")
        axis.legend(frameon=False, fontsize=style.TEXT_SIZE)
    for axis in figure.axes:
        axis.title.set_fontsize(style.LABEL_SIZE)
        style.despine(axis)
    return figure


def draw_histograms(axis: Axes, title: str, scores: dict[int, Tensor], limit: float) -> None:
    """Draw the distributions of scores between −limit and limit for some widths."""
    for width, colour in ((4, style.BLUE), (64, style.ORANGE), (1024, style.GREEN)):
        values = scores[width].flatten()
        label = f"d = {width}: standard deviation {values.std():.0f}"
        options: style.Options = {"bins": 40, "range": (-limit, limit), "density": True}
        axis.hist(values.numpy(), histtype="stepfilled", color=colour, alpha=0.18, **options)
        options |= {"linewidth": 2, "label": label}
        axis.hist(values.numpy(), histtype="step", color=colour, **options)
    axis.margins(y=0.5)
    axis.set(title=title, xlabel="score", ylabel="density", yticks=[])
    axis.legend(frameon=False, fontsize=style.TEXT_SIZE, loc="upper left", handlelength=1.2)
