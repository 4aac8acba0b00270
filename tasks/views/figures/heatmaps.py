"""Pictures of attention: who looks at whom, in every head of a layer."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attention_zoo.tasks.views.attention_record import ROLES, AttentionRecord
from attention_zoo.tasks.views.figures.fonts import families, legible
from attention_zoo.tasks.views.figures.style import SIGNED, WEIGHTS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def attention_figure(
    reading: AttentionRecord, role: str, layer: int, heads: Sequence[int] | None = None
) -> "Figure":
    """Heat maps of one layer: the mean of its heads, then every head, on one colour scale.

    Keys run along x and queries down y. Where some weights are negative, zero is white. Nothing of
    pyplot is used: the figure belongs to the caller alone, and may be made in any thread.

    Args:
        reading: tokens and maps of one line.
        role: "encoder", "decoder" or "cross".
        layer: index of the layer, from 0.
        heads: indices of the heads to draw, from 0; then there is no mean.

    Raises:
        ValueError: the reading has no such role, layer or head, or a map does not fit its tokens.
    """
    weights = reading.weights(role, layer)
    title, queries_side, keys_side = ROLES[role]
    queries, keys = reading.tokens(role)
    labels = _Labels(keys, queries)
    there = range(len(weights))
    if strange := [head for head in heads or () if head not in there]:
        raise ValueError(f"heads must lie between 0 and {there[-1]}, got {strange}.")
    drawn = there if heads is None else heads
    panels = [weights[head] for head in drawn]
    names = [f"head {head + 1}" for head in drawn]
    # The mean of a single head is that head.
    if heads is None and len(weights) > 1:
        panels.insert(0, weights.mean(0))
        names.insert(0, "mean of heads")

    columns = _columns(len(panels), labels.width / labels.height)
    rows = math.ceil(len(panels) / columns)
    heading = f"{title}, layer {layer + 1} of {len(reading.maps[role])}"
    figure = new_figure(
        # Few tokens need less room than what is written above them.
        max(columns * (labels.width + 0.25) + labels.margin + 1.4, 0.6 * 14 / 72 * len(heading)),
        rows * (labels.height + 0.4) + labels.margin + 1.0,
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    least = min(panel.min().item() for panel in panels)
    low, high, colours = 0.0, max(panel.max().item() for panel in panels), WEIGHTS
    if least < 0:
        high = max(high, -least)
        low, colours = -high, SIGNED
    for index, (axis, panel, name) in enumerate(zip(axes, panels, names, strict=False)):
        image = axis.imshow(
            panel.numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none"
        )
        axis.set_title(name, fontsize=11, fontweight="bold" if name.startswith("mean") else None)
        labels.draw(
            axis, with_keys=index + columns >= len(panels), with_queries=index % columns == 0
        )
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(heading, fontsize=14)
    figure.supxlabel(f"{keys_side} tokens (keys)", fontsize=12)
    figure.supylabel(f"{queries_side} tokens (queries)", fontsize=12)
    # A bar as long as the figure is tall would outweigh a tall grid.
    figure.colorbar(
        image, ax=list(axes[: len(panels)]), label="attention weight", aspect=20 * rows, pad=0.01
    )
    return figure


def _columns(panels: int, aspect: float) -> int:
    """Columns of the grid, about 6:5 and with few empty places."""

    def cost(columns: int) -> tuple[float, int]:
        rows = math.ceil(panels / columns)
        shape = abs(math.log(columns * aspect / rows / 1.2))
        return shape + (rows * columns - panels) / panels, columns

    return min(range(1, panels + 1), key=cost)


class _Labels:
    """Token labels of a panel, and the panel's size in inches, which they decide."""

    def __init__(self, keys: list[str], queries: list[str]) -> None:
        longest = max(len(keys), len(queries))
        # Square cells: roomy for a few tokens, and a panel of at most 7 inches for many.
        cell = min(0.36, 7.0 / longest)
        self.width = max(1.2, cell * len(keys))
        self.height = max(1.2, cell * len(queries))
        self.size = min(10.0, max(5.0, 0.72 * 72 * cell))  # points
        # Where even the smallest letters are taller than a cell, every second label or so is drawn.
        self.stride = math.ceil(1.1 * self.size / 72 / cell)
        self.keys = [legible(token) for token in keys]
        self.queries = [legible(token) for token in queries]
        self.family = families()
        characters = max((len(label) for label in [*self.keys, *self.queries]), default=0)
        self.margin = 0.6 * self.size / 72 * characters
        widest_key = 0.6 * self.size / 72 * max(len(label) for label in self.keys)
        self.rotation = 0 if widest_key < cell else 90

    def draw(self, axis: "Axes", *, with_keys: bool, with_queries: bool) -> None:
        keys = self.keys[:: self.stride] if with_keys else []
        queries = self.queries[:: self.stride] if with_queries else []
        axis.set_xticks(range(0, len(keys) * self.stride, self.stride), keys)
        axis.set_yticks(range(0, len(queries) * self.stride, self.stride), queries)
        axis.tick_params(length=2, labelsize=self.size, labelfontfamily=self.family)
        axis.tick_params(axis="x", labelrotation=self.rotation)
        for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
            label.set_parse_math(False)  # "$5 or $6" is no formula
