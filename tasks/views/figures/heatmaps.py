"""Heat maps of attention weights: every head of a layer."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.tasks.views.attention_record import ROLES, AttentionRecord, name_layer
from attention_zoo.tasks.views.figures import style


def draw_heatmaps(
    record: AttentionRecord, role: str, layer: int, heads: Sequence[int] | None = None
) -> Figure:
    """Draw heat maps of one layer on one colour scale: the mean of its heads, then every head.

    Keys run along x and queries down y. If some weights are negative, zero is white.

    Args:
        record: tokens and weights of one line.
        role: "encoder", "decoder" or "cross".
        layer: index of the layer, from 0.
        heads: indices of the heads to draw, from 0, without their mean; all, if not given.
    """
    return next(draw_layers(record, role, [layer], heads))


def draw_layers(
    record: AttentionRecord,
    role: str,
    layers: Sequence[int],
    heads: Sequence[int] | None = None,
) -> Iterator[Figure]:
    """Yield what `draw_heatmaps` returns for each layer.

    Layers with as many heads share a figure, which is to be saved before the next one is asked for:
    most of the time goes into labels and their layout.
    """
    grid = None
    for layer in layers:
        panels = _named_panels(record.weights(role, layer), heads)
        heading = f"{ROLES[role][0]}, {name_layer(layer, len(record.maps[role]))}"
        if grid is None or len(grid.images) != len(panels):
            grid = _Grid(record, role, [name for name, _ in panels], heading)
        grid.show([weights for _, weights in panels], heading)
        yield grid.figure


class _Grid:
    """A figure with a heat map for each of some panels, which weights fill."""

    def __init__(
        self, record: AttentionRecord, role: str, names: Sequence[str], heading: str
    ) -> None:
        _, queries_side, keys_side = ROLES[role]
        labels = _TokenLabels(*record.tokens(role))
        columns = _num_columns(len(names), labels.width / labels.height)
        rows = math.ceil(len(names) / columns)
        width = columns * (labels.width + 0.25) + labels.margin + 1.4
        height = rows * (labels.height + 0.4) + labels.margin + 1.0
        # With few tokens, the heading needs more width than the panels.
        self.figure = style.new_figure(max(width, _text_width(heading, style.HEADING_SIZE)), height)
        self.title = self.figure.suptitle(heading, fontsize=style.HEADING_SIZE)
        axes = self.figure.subplots(rows, columns, squeeze=False).flatten()
        self.norm, self.images = Normalize(0, 1), []
        options: style.Options = {"aspect": "auto", "interpolation": "none", "norm": self.norm}
        for index, (axis, name) in enumerate(zip(axes, names, strict=False)):
            empty = np.zeros((len(labels.queries), len(labels.keys)))
            self.images.append(axis.imshow(empty, **options))
            weight = "bold" if name.startswith("mean") else None
            axis.set_title(name, fontsize=style.LABEL_SIZE, fontweight=weight)
            keys = labels.keys if index + columns >= len(names) else []  # at the bottom
            queries = labels.queries if index % columns == 0 else []  # at the left
            style.label_cells(axis, keys, queries, stride=labels.stride, rotation=labels.rotation)
            axis.tick_params(length=2, labelsize=labels.size)
        for axis in axes[len(names) :]:
            axis.remove()
        self.figure.supxlabel(f"{keys_side} tokens (keys)", fontsize=style.TITLE_SIZE)
        self.figure.supylabel(f"{queries_side} tokens (queries)", fontsize=style.TITLE_SIZE)
        # The aspect keeps the bar of a tall grid short and wide enough.
        options = {"label": "attention weight", "aspect": 20 * rows, "pad": 0.01}
        shown = list(axes[: len(names)])
        self.bar = self.figure.colorbar(self.images[0], ax=shown, **options)
        self.bar_width = 0  # characters of the widest number for which there is room at the bar

    def show(self, weights: Sequence[Tensor], heading: str) -> None:
        """Fill the panels with weights [q k], on one colour scale."""
        low, high = min(x.min().item() for x in weights), max(x.max().item() for x in weights)
        limits = (0.0, high) if low >= 0 else (-max(high, -low), max(high, -low))
        self.norm.vmin, self.norm.vmax = limits
        for image, values in zip(self.images, weights, strict=True):
            image.set_data(values.numpy())
            image.set_cmap(style.SEQUENTIAL if low >= 0 else style.DIVERGING)
        self.title.set_text(heading)
        width = max(len(label.get_text()) for label in self.bar.ax.get_yticklabels())
        self.figure.set_layout_engine("constrained" if width > self.bar_width else "none")
        self.bar_width = max(width, self.bar_width)


def _named_panels(weights: Tensor, heads: Sequence[int] | None) -> list[tuple[str, Tensor]]:
    """Return the weights of the given heads with their titles, or those of all and their mean."""
    available = range(len(weights))
    if unknown := [head for head in heads or () if head not in available]:
        raise ValueError(f"heads must lie between 0 and {available[-1]}, got {unknown}.")
    chosen = available if heads is None else heads
    panels = [(f"head {head}", weights[head]) for head in chosen]
    # The mean of a single head is that head.
    if heads is None and len(panels) > 1:
        panels.insert(0, ("mean of heads", weights.mean(0)))
    return panels


def _num_columns(panels: int, aspect: float) -> int:
    """Return the number of columns of a grid whose shape is about 6:5, with few empty cells."""

    def cost(columns: int) -> tuple[float, int]:
        rows = math.ceil(panels / columns)
        shape = abs(math.log(columns * aspect / rows / 1.2))
        return shape + (rows * columns - panels) / panels, columns

    return min(range(1, panels + 1), key=cost)


def _text_width(text: str, size: float) -> float:
    """Estimate the width of a text in inches."""
    return 0.6 * size / 72 * len(text)


class _TokenLabels:
    """The token labels of a panel, and the size of the panel in inches."""

    def __init__(self, queries: list[str], keys: list[str]) -> None:
        # Cells are square. They are large for few tokens; for many, a panel has at most 7 inches.
        cell = min(0.36, 7.0 / max(len(queries), len(keys)))
        self.width, self.height = max(1.2, cell * len(keys)), max(1.2, cell * len(queries))
        self.size = min(10.0, max(5.0, 0.72 * 72 * cell))  # points
        # If the smallest letters are taller than a cell, only every second label or so is drawn.
        self.stride = math.ceil(1.1 * self.size / 72 / cell)
        self.queries, self.keys = ([style.fit_label(x) for x in side] for side in (queries, keys))
        widest_query, widest_key = (
            _text_width(max(side, key=len), self.size) for side in (self.queries, self.keys)
        )
        self.margin = max(widest_key, widest_query)
        self.rotation = 0 if widest_key < cell else 90
