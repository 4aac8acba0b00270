"""Charts of several series: their styles, their axes, and SVG for pages."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from attention_zoo.tasks.views.figures.style import BLACK, COLOURS, GREY, despine

MARKERS = "os^DvPX"
DASHES = ("-", "--", ":", "-.")
GRID = "#dcdfe3"
# Of a label from its point, in points, with its alignment.
LABEL_OFFSETS = ((8, 0, "left"), (-8, 0, "right"), (0, 11, "center"), (0, -11, "center"))
# A page replaces the colours of text and grid by its own, which follow its light or dark scheme.
CSS_COLOURS = {BLACK: "var(--ink)", GREY: "var(--soft)", GRID: "var(--line)"}
SVG_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "attention-zoo",
    "text.parse_math": False,  # A label may have dollar signs.
    "text.color": BLACK,
    **dict.fromkeys(["axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], GREY),
}


def series_style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a series; those of the first 28 series differ."""
    colour, marker, dashes = (each[index % len(each)] for each in (COLOURS, MARKERS, DASHES))
    sizes = {"markersize": 6, "linewidth": 1.8}
    return {"color": colour, "marker": marker, "linestyle": dashes, **sizes}


def style_axes(axes: Axes) -> None:
    """Draw a grid and no frame, and write numbers in full."""
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    despine(axes)
    for axis in (axes.xaxis, axes.yaxis):
        write_numbers_in_full(axis)


def write_numbers_in_full(axis: Axis) -> None:
    """Write the numbers of an axis as they are.

    A logarithmic scale brings a format of its own, of powers in mathematical notation.
    """
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def set_length_axis(axes: Axes, lengths: Sequence[int], trained_at: Set[int | None]) -> None:
    """Make the x-axis one of lengths, doubled at each step, and mark the training lengths."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    for length in filter(None, trained_at):
        axes.axvline(length, color=GREY, linestyle="--", linewidth=1, zorder=0)
        style: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate(f"trained at {length}", (length, 1), (4, -4), va="top", color=GREY, **style)


def label_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write labels next to points, if they cover neither points nor other labels."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    positions = axes.transData.transform(list(points.values()))
    boxes = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in positions]
    style: Any = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": GREY}
    for label, point in points.items():
        for x, y, side in LABEL_OFFSETS:
            text = axes.annotate(shorten(label, 24), point, (x, y), ha=side, **style)
            box = text.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not any(box.overlaps(other) for other in boxes):
                boxes.append(box)
                break
            text.remove()


def shorten(text: str, length: int) -> str:
    """Return a text of at most a number of characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@contextmanager
def svg_settings() -> Iterator[None]:
    """Set what figures for `figure_svg` must be drawn with."""
    with rc_context(SVG_SETTINGS), warnings.catch_warnings():
        # The browser has other fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure_svg(figure: Figure, title: str, row_labels: Sequence[str] = ()) -> Markup:
    """Return a figure as an SVG element for a page, with a title that describes it.

    What shows a row of the table has the id `row-0`, `row-1` and so on. The label of the row
    appears where the pointer is.
    """
    file = io.StringIO()
    metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue().partition("<svg ")[2]
    svg = re.sub(r"<style.*?</style>|(?<=>)\s+(?=<)", "", svg, flags=re.DOTALL)
    # Several elements of a page must not share an id.
    svg = re.sub(r' id="[A-Za-z.]+(2d)?_\d+"', "", svg)

    for row, label in enumerate(row_labels):
        group = f'<g class="row" data-row="{row}"><title>{escape(label)}</title>'
        svg = svg.replace(f'<g id="row-{row}">', group)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return Markup(f'<svg role="img" aria-label="{escape(title)}" {svg.rstrip()}')
