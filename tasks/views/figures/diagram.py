"""A model as a diagram, drawn from the model itself."""

import textwrap
from typing import TYPE_CHECKING, Any

from torch import nn

from attention_zoo.tasks.views.figures.blueprint import (
    Box,
    Branch,
    Column,
    Run,
    columns,
    parameters,
)
from attention_zoo.tasks.views.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    SOFT,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All lengths are inches.
_BOX = 2.75  # width
_GAP = 0.26  # between boxes, which an arrow crosses
_LINE = 0.185  # of text
_PADDING = 0.09  # above and below the text of a box
_BYPASS = 0.22  # from a box to the residual connection beside it
_PLUS = 0.1  # radius
_MARGIN = 0.14  # of a frame around layers
_SIDE = 1.05  # beside a frame, for the number of its layers
_MIDDLE = 0.6  # between two frames, for the memory
_EDGE = 0.15  # of the figure
_CAPTION = 0.85  # below the first arrow
_HALF = _BOX / 2 + _BYPASS + _MARGIN  # of a frame, where the residual connections are
_OUTER, _INNER = _HALF + _SIDE, _BOX / 2 + _MARGIN
_LETTERS = 34  # of a line in a box
_COLOURS = {
    "embedding": PINK,
    "position": BLUE,
    "norm": GREEN,
    "attention": ORANGE,
    "feed_forward": SKY,
    "output": PINK,
}
_FRAME = "#eff1f3"


def architecture(model: nn.Module) -> "Figure":
    """The model as Vaswani et al. 2017 draw theirs (figure 1): computed from below to above.

    Boxes, sizes and order are read off the model by `blueprint.columns`. Layers that are made alike
    are drawn once, with their number; those that differ are drawn one above the other.

    Args:
        model: a `Seq2Seq` or a `LanguageModel`.

    Raises:
        ValueError: another model.
    """
    figure = new_figure(1, 1)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    pens = []
    left = _EDGE
    for column in columns(model):
        # Residual connections and numbers of layers stand at the outer sides.
        outer = -1 if column.writes is None else 1
        pen = _Pen(axis, left + (_OUTER if outer < 0 else _INNER), outer)
        pen.column(column)
        pens.append(pen)
        left += _OUTER + _INNER + _MIDDLE
    width, height = left - _MIDDLE + _EDGE, max(pen.y for pen in pens) + 0.75
    if len(pens) == 2:
        bring_memory(*pens)
    name, total = type(model).__name__, parameters(model)
    axis.text(
        width / 2,
        height - 0.25,
        f"{name}, {total:,} parameters",
        ha="center",
        va="center",
        fontsize=14,
    )
    figure.set_size_inches(width, height)
    axis.set(xlim=(0, width), ylim=(0, height))
    return figure


class _Pen:
    """Draws a column from below to above, and knows where it is.

    Args:
        x: of the column's middle.
        outer: the side where the residual connections are, −1 or 1.
    """

    def __init__(self, axis: "Axes", x: float, outer: int) -> None:
        self.axis = axis
        self.x = x
        self.y = _CAPTION
        self.outer = outer
        # The heights of what reads the memory.
        self.readers: list[float] = []

    def column(self, column: Column) -> None:
        self.say(0.38, column.title, size=13, weight="bold")
        self.say(0.15, f"{column.parameters:,} parameters", size=9, color=SOFT)
        self.say(self.y - 0.12, column.reads, size=11)
        for box in column.before:
            self.box(box)
        for run in column.runs:
            self.run(run, alone=len(column.runs) == 1)
        for box in column.behind:
            self.box(box)
        self.up(_GAP, arrow=column.writes is not None)
        if column.writes is not None:
            self.say(self.y + 0.12, column.writes, size=11)

    def run(self, run: Run, *, alone: bool) -> None:
        from matplotlib.patches import FancyBboxPatch

        self.up(_MARGIN)
        bottom = self.y
        self.up(_MARGIN)
        for branch in run.branches:
            self.branch(branch)
        self.up(_MARGIN)
        ends = sorted((self.x + self.outer * _HALF, self.x - self.outer * (_BOX / 2 + _MARGIN)))
        self.axis.add_patch(
            FancyBboxPatch(
                (ends[0], bottom),
                ends[1] - ends[0],
                self.y - bottom,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=_FRAME,
                edgecolor="none",
                zorder=0,
            )
        )
        number = f"× {run.last - run.first + 1}"
        if not alone:
            many = run.last > run.first
            number = f"layers {run.first}–{run.last}" if many else f"layer {run.first}"
        where = {
            "x": self.x + self.outer * (_HALF + 0.1),
            "ha": "left" if self.outer > 0 else "right",
        }
        middle = (bottom + self.y) / 2
        self.say(middle + 0.2, number, size=16 if alone else 11, weight="bold", **where)
        self.say(middle - 0.1, f"{run.parameters:,}", size=9, color=SOFT, **where)
        self.say(middle - 0.27, "parameters", size=9, color=SOFT, **where)
        if run.last > run.first:
            self.say(middle - 0.44, "each", size=9, color=SOFT, **where)

    def branch(self, branch: Branch) -> None:
        """A sublayer, and its residual connection."""
        from matplotlib.patches import Circle

        below = self.y
        for box in branch.beside:
            self.box(box)
        if branch.reads_memory:
            self.readers.append(self.y - height_of(branch.beside[-1]) / 2)
        self.up(_GAP, arrow=True)
        plus = self.y + _PLUS
        side = self.x + self.outer * (_BOX / 2 + _BYPASS)
        near = self.x + self.outer * _PLUS
        self.line([(self.x, below), (side, below), (side, plus), (near, plus)], arrow=True)
        self.axis.add_patch(Circle((self.x, plus), _PLUS, facecolor="white", edgecolor=BLACK))
        self.say(plus, "+", size=12)
        self.y = plus + _PLUS
        for box in branch.behind:
            self.box(box)
        self.up(_GAP / 2)

    def box(self, box: Box) -> None:
        from matplotlib.patches import FancyBboxPatch

        self.up(_GAP, arrow=True)
        height = height_of(box)
        self.axis.add_patch(
            FancyBboxPatch(
                (self.x - _BOX / 2, self.y),
                _BOX,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=tint(_COLOURS[box.kind]),
                edgecolor=BLACK,
                linewidth=1,
            )
        )
        self.y += height
        top = self.y - _PADDING - _LINE / 2
        self.say(top, box.title, size=10.5, weight="bold")
        for number, line in enumerate(lines_of(box), start=1):
            self.say(top - number * _LINE, line, size=9)

    def up(self, length: float, *, arrow: bool = False) -> None:
        self.line([(self.x, self.y), (self.x, self.y + length)], arrow=arrow)
        self.y += length

    def line(self, corners: list[tuple[float, float]], *, arrow: bool = False) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        style = "-|>" if arrow else "-"
        self.axis.add_patch(
            FancyArrowPatch(
                path=Path(corners),
                arrowstyle=style,
                mutation_scale=10,
                linewidth=1.2,
                color=BLACK,
                shrinkA=0,
                shrinkB=0,
                joinstyle="round",
            )
        )

    def say(self, y: float, text: str, *, size: float, **style: Any) -> None:
        options: dict[str, Any] = {
            "x": self.x,
            "ha": "center",
            "va": "center",
            "color": BLACK,
        } | style
        self.axis.text(y=y, s=text, fontsize=size, **options)


def bring_memory(encoder: _Pen, decoder: _Pen) -> None:
    """From the top of the encoder to all that read it, by way of the middle."""
    middle = (encoder.x + decoder.x) / 2
    start = [(encoder.x, encoder.y), (middle, encoder.y)]
    for reader in decoder.readers:
        end = [(middle, reader), (decoder.x - _BOX / 2, reader)]
        encoder.line([*start, *end], arrow=True)
    encoder.say(encoder.y + 0.14, "memory", size=11)


def height_of(box: Box) -> float:
    return _LINE * (1 + len(lines_of(box))) + 2 * _PADDING


def lines_of(box: Box) -> list[str]:
    """The facts of a box, in lines that fit into it."""
    return [line for fact in box.facts for line in textwrap.wrap(fact, _LETTERS)]


def tint(colour: str) -> tuple[float, ...]:
    """A colour mixed with white."""
    from matplotlib.colors import to_rgb

    return tuple(0.68 + 0.32 * part for part in to_rgb(colour))
