"""What schematic pictures are made of: a sheet measured in inches, and matrices on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_zoo.tasks.views.figures.style import BLACK, WEIGHTS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[float, ...]
Paint = Callable[[float], Colour]


@contextmanager
def same_draw() -> Iterator[None]:
    """Chance that falls the same way every time, and leaves that of the caller alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def new_sheet(width: float, height: float) -> tuple["Figure", "Axes"]:
    """A figure whose one axis is the whole of it, in inches from the lower left corner."""
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def of_weight(value: float) -> Colour:
    """The colour of a weight between 0 and 1."""
    from matplotlib import colormaps

    return colormaps[WEIGHTS](value)


def draw_cells(
    axis: "Axes",
    numbers: Tensor,
    left: float,
    top: float,
    *,
    size: float,
    paint: Paint,
    digits: int | None = None,
) -> None:
    """A matrix [r c] as a grid of coloured squares, with its numbers in them where `digits` says
    how many decimals they have.
    """
    from matplotlib.patches import Rectangle

    for row, line in enumerate(numbers.tolist()):
        for column, value in enumerate(line):
            colour = paint(value)
            corner = (left + column * size, top - (row + 1) * size)
            axis.add_patch(
                Rectangle(corner, size, size, facecolor=colour, edgecolor="white", linewidth=0.8)
            )
            if digits is None:
                continue
            dark = sum(colour[:3]) < 1.4
            axis.text(
                corner[0] + size / 2,
                corner[1] + size / 2,
                # No minus before what rounds to zero.
                f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}"),
                ha="center",
                va="center_baseline",
                fontsize=9,
                color="white" if dark else BLACK,
            )


def plain(axis: "Axes") -> None:
    """Without the two lines of its frame that say nothing."""
    axis.spines[["top", "right"]].set_visible(False)
