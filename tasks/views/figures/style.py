"""What pictures share: figures that belong to their caller, colours that everybody can tell."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who see no red or no green tell apart.
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
SKY, RED, BLACK = "#56b4e9", "#d55e00", "#1b1f24"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK)
SOFT = "#5b636d"  # of what stands beside the point
EMPTY = "#eceef0"  # where there is nothing, as a key that is not seen
WEIGHTS = "cividis"  # from none to much
SIGNED = "PuOr"  # around zero, which is white
DPI = 100


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, without pyplot: it may be drawn in any thread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
