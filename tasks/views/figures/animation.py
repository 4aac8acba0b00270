"""A translation as it is written, token by token, with where the model looked for each."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attention_zoo.tasks.views.figures.fonts import families, legible
from attention_zoo.tasks.views.figures.style import BLACK, BLUE, RED, SOFT, new_figure
from attention_zoo.tasks.views.figures.translated import clearest_layer, shares, translated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_ROW = 0.3  # inches from token to token
_WIDTH = 6.0  # inches
_SOURCE, _TARGET = 0.36, 0.64  # where the lines end, in shares of the width
_FIRST, _TOKEN, _LAST = 1200, 700, 5000  # milliseconds that a picture stays


def write_translation(task: Any, line: str, path: Path) -> None:
    """An animated GIF of a line's translation as it appears, token by token, without end.

    The source stands at the left, the translation at the right. The token that is being written
    sends a line to every source token, as wide as its weight there: the `shares` in the mean of the
    heads of `clearest_layer`. The strongest line of each token stays. The first picture shows the
    source alone, the last one the whole translation.

    Args:
        task: a `TranslationTask`, in evaluation mode.
        line: in the source language.
        path: of the file.

    Raises:
        UserError: the task is no translation.
    """
    from PIL.Image import Dither, Quantize

    reading = translated(task, line)
    layers = reading.maps["cross"]
    weights = shares(layers[clearest_layer(layers)].mean(0))
    count = len(reading.target_tokens)
    pictures = [
        pixels(picture(reading.source_tokens, reading.target_tokens, weights, written))
        for written in range(count + 2)
    ]
    # One palette for all, so that colours do not flicker: that of the last token, which has most.
    palette = pictures[count].quantize(64, method=Quantize.MAXCOVERAGE)
    frames = [one.quantize(palette=palette, dither=Dither.NONE) for one in pictures]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=[_FIRST, *[_TOKEN] * count, _LAST],
        loop=0,
    )


def picture(source: list[str], target: list[str], weights: Tensor, written: int) -> "Figure":
    """The translation when so many tokens are written; one more than there are: when all is done.

    Args:
        source, target: tokens.
        weights: [q k], of the target tokens on those of the source, from 0 to 1.
        written: how many of the target are there. The last of them is the one that looks.
    """
    height = _ROW * (max(len(source), len(target)) + 1.9)
    figure = new_figure(_WIDTH, height)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 1), ylim=(height / _ROW - 1.6, -1.6))
    axis.axis("off")
    write(axis, _SOURCE - 0.02, -1, "source", ha="right", color=SOFT)
    write(axis, _TARGET + 0.02, -1, "translation", ha="left", color=SOFT)
    looking = written - 1 if written <= len(target) else None
    for query in range(min(written, len(target))):
        if query == looking:
            join(axis, weights[query], query, RED)
        else:
            strongest = weights[query] * (weights[query] == weights[query].max())
            join(axis, strongest, query, BLUE)
    if looking is not None and written:
        for key, weight in enumerate(weights[looking].tolist()):
            axis.barh(key, _SOURCE - 0.03, left=0.02, height=0.9, color=RED, alpha=0.6 * weight)
    for place, token in enumerate(source):
        write(axis, _SOURCE - 0.02, place, token, ha="right", color=BLACK)
    for place, token in enumerate(target[:written]):
        colour, weight = (RED, "bold") if place == looking else (BLACK, "normal")
        write(axis, _TARGET + 0.02, place, token, ha="left", color=colour, fontweight=weight)
    return figure


def pixels(figure: "Figure") -> "Image":
    import numpy as np
    from PIL.Image import fromarray

    figure.canvas.draw()
    return fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]


def join(axis: "Axes", weights: Tensor, query: int, colour: str) -> None:
    """Lines from a target token to the source tokens, as wide as its weights [k] are large."""
    for key, weight in enumerate(weights.tolist()):
        axis.plot(
            (_SOURCE, _TARGET),
            (key, query),
            color=colour,
            linewidth=7 * weight,
            alpha=0.8,
            solid_capstyle="round",
        )


def write(axis: "Axes", x: float, place: int, token: str, **style: Any) -> None:
    axis.text(
        x,
        place,
        legible(token),
        va="center_baseline",
        fontsize=13,
        family=families(),
        parse_math=False,
        **style,
    )
