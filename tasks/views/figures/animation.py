"""The animation of a translation: token by token, with the cross-attention of each token."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Dither, Quantize, fromarray
from torch import Tensor

from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.cross_attention import (
    lowest_entropy_layer,
    normalise_weights,
    record_translation,
)

_ROW = 0.3  # height of a token, in inches
_SOURCE, _TARGET = 0.36, 0.64  # ends of the lines, as fractions of the width


def animate_translation(task: Any, line: str, path: Path) -> None:
    """Draw a translation that grows token by token, with lines to the source tokens.

    The task is a `TranslationTask` in evaluation mode; the path is that of an endless GIF. The
    source is at the left, the translation at the right. Lines join the newest token to all source
    tokens, as wide as their weights: the normalised mean of the heads of `lowest_entropy_layer`.
    Older tokens keep their strongest line. The first frame shows the source alone, the last one the
    whole translation.
    """
    record = record_translation(task, line)
    layers = record.maps["cross"]
    weights = normalise_weights(layers[lowest_entropy_layer(layers)].mean(0))
    source, target = record.source_tokens, record.target_tokens
    count = len(target)
    images = []
    for length in range(count + 2):
        canvas = draw_frame(source, target, weights, length).canvas
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[attr-defined]
        images.append(fromarray(pixels).convert("RGB"))
    # One palette keeps colours from flickering; the frame of the last token has most colours.
    palette = images[count].quantize(64, method=Quantize.MAXCOVERAGE)
    frames = [image.quantize(palette=palette, dither=Dither.NONE) for image in images]
    durations = [1200, *[700] * count, 5000]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def draw_frame(source: list[str], target: list[str], weights: Tensor, length: int) -> Figure:
    """Draw the first tokens of a translation with weights [q k], and highlight the last of them."""
    height = _ROW * (max(len(source), len(target)) + 1.9)
    figure, axis = style.new_canvas(6, height)
    axis.set(xlim=(0, 1), ylim=(height / _ROW - 1.6, -1.6))
    left: style.Options = {"ha": "right", "size": style.HEADING_SIZE}
    right: style.Options = {"ha": "left", "size": style.HEADING_SIZE}
    style.draw_token(axis, _SOURCE - 0.02, -1, "source", color=style.GREY, **left)
    style.draw_token(axis, _TARGET + 0.02, -1, "translation", color=style.GREY, **right)
    for key, token in enumerate(source):
        style.draw_token(axis, _SOURCE - 0.02, key, token, color=style.BLACK, **left)
    for query, token in enumerate(target[:length]):
        row, text_style = weights[query], {"color": style.BLACK}
        if query == length - 1:  # None is, if `length` exceeds the number of tokens.
            text_style = {"color": style.RED, "fontweight": "bold"}
            draw_lines(axis, row, query, style.RED)
            for key, weight in enumerate(row.tolist()):
                bar = {"left": 0.02, "color": style.RED, "alpha": 0.6 * weight}
                axis.barh(key, _SOURCE - 0.03, height=0.9, **bar)
        else:
            draw_lines(axis, row * (row == row.max()), query, style.BLUE)
        style.draw_token(axis, _TARGET + 0.02, query, token, **text_style, **right)
    return figure


def draw_lines(axis: Axes, weights: Tensor, query: int, colour: str) -> None:
    """Draw lines from a target token to the source tokens, as wide as its weights [k]."""
    for key, weight in enumerate(weights.tolist()):
        options = {"linewidth": 7 * weight, "alpha": 0.8, "solid_capstyle": "round"}
        axis.plot((_SOURCE, _TARGET), (key, query), color=colour, **options)
