"""The one style of all pictures: colours, fonts, sizes, and how a figure is made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.patches import Rectangle

# The colours of Okabe and Ito, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
SKY, RED, BLACK = "#56b4e9", "#d55e00", "#1b1f24"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK)
GREY = "#5b636d"  # secondary text and lines
EMPTY = "#eceef0"  # background, and the colour of what is absent, such as a masked key
SEQUENTIAL = colormaps["cividis"]  # of weights, from 0 to the largest
DIVERGING = colormaps["PuOr"]  # of signed numbers; zero is white
# Font sizes in points.
NOTE_SIZE, TEXT_SIZE, LABEL_SIZE, TITLE_SIZE, HEADING_SIZE = 9, 10, 11, 12, 13

# Matplotlib has no glyphs for Asian scripts; these fonts are used where they are installed.
_FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei")
_LABEL_LENGTH = 14  # characters

Point = tuple[float, float]
ColourMap = Callable[[float], tuple[float, ...]]
Options = dict[str, Any]  # of a function of matplotlib


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, with constrained layout."""
    # Without pyplot, no global state holds the figure, and any thread may draw it.
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure and axes that fill it, in inches from the lower left corner."""
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure as it is; `Figure.savefig` draws everything twice."""
    FigureCanvasAgg(figure).print_png(path)


def despine(axis: Axes) -> None:
    """Hide the top and the right line of the frame."""
    axis.spines[["top", "right"]].set_visible(False)


def draw_text(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write a text, centred on a point unless the options of matplotlib's `Text` differ."""
    defaults: Options = {"size": TEXT_SIZE, "ha": "center", "va": "center"}
    axis.text(x, y, text, **defaults | options)


def draw_arrow(axis: Axes, start: Point, stop: Point, **options: Any) -> None:
    """Draw a straight arrow between two points."""
    defaults: Options = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", xy=stop, xytext=start, arrowprops=defaults | options)


def draw_bars(axis: Axes, names: Sequence[str], values: Sequence[float], **options: Any) -> None:
    """Draw a bar to the right for each value, with its number, and a name at its left."""
    bars = axis.barh(range(len(names)), values, color=BLUE, **options)
    labels = ["0" if value == 0 else f"{value:.2f}" for value in values]
    axis.bar_label(bars, labels, padding=3, fontsize=TEXT_SIZE)
    axis.set_yticks(range(len(names)), names)
    despine(axis)


def font_families() -> list[str]:
    """Return the fonts for tokens, in the order in which matplotlib tries them."""
    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


def fit_label(token: str) -> str:
    """Return at most `_LABEL_LENGTH` characters of a token, all of which the fonts can show."""
    fonts = [get_font(findfont(FontProperties(family=name))) for name in font_families()]
    label = "".join(
        character
        if character.isprintable() and any(font.get_char_index(ord(character)) for font in fonts)
        else repr(character)[1:-1].replace(character, "\N{WHITE SQUARE}")
        for character in token
    )
    if len(label) > _LABEL_LENGTH:
        return label[: _LABEL_LENGTH - 1] + "…"
    return label.strip() or label


def draw_token(axis: Axes, x: float, y: float, token: str, **options: Any) -> None:
    """Write the label of a token, in the fonts for tokens."""
    options |= {"family": font_families(), "parse_math": False, "va": "center_baseline"}
    draw_text(axis, x, y, fit_label(token), **options)


def label_cells(
    axis: Axes, columns: Sequence[str], rows: Sequence[str], *, stride: int = 1, **options: Any
) -> None:
    """Label the columns, with options of matplotlib's `Text`, and the rows of a heat map."""
    axis.set_xticks(range(len(columns))[::stride], columns[::stride], **options)
    axis.set_yticks(range(len(rows))[::stride], rows[::stride])
    axis.tick_params(labelfontfamily=font_families())
    for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
        label.set_parse_math(False)  # of dollars, such as "$5 or $6"


def lighten(colour: str, strength: float) -> tuple[float, ...]:
    """Mix a colour with white: strength 0 gives white, 1 the colour itself."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def draw_matrix(
    axis: Axes,
    values: Sequence[Sequence[float]],
    corner: Point,  # at the upper left
    cell: float,
    colour_map: ColourMap,
    decimals: int | None = None,
) -> None:
    """Draw a matrix as squares of the width `cell`; without `decimals`, they have no numbers."""
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = colour_map(value)
            x, y = corner[0] + column * cell, corner[1] - (row + 1) * cell
            square = Rectangle((x, y), cell, cell, fc=colour, ec="white", linewidth=0.8)
            axis.add_patch(square)
            if decimals is not None:
                # Adding 0.0 turns a negative zero into zero.
                number = f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")
                dark = sum(colour[:3]) < 1.4
                options = {"va": "center_baseline", "color": "white" if dark else BLACK}
                draw_text(axis, x + cell / 2, y + cell / 2, number, size=NOTE_SIZE, **options)
