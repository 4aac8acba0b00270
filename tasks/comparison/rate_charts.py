"""Charts of the loss by learning rate, with a panel for each candidate."""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, NullLocator

from attention_zoo.tasks.comparison.settings import Trials
from attention_zoo.tasks.views.charts import (
    GRID,
    figure_svg,
    series_style,
    style_axes,
    svg_settings,
)
from attention_zoo.tasks.views.figures.style import new_figure

TITLE = "Validation loss by learning rate"
AXIS = "learning rate, at ¼ of the length (×: option, ring: chosen)"
COLUMNS = 4
PANEL_HEIGHT = 1.7  # inches
LABEL_LENGTH = 28  # characters that fit above a panel


def rate_ticks(low: float, high: float) -> list[float]:
    """Return the ends of a range of rates, and powers of ten that stand apart from them."""
    powers = [10.0**x for x in range(math.ceil(math.log10(low)), math.ceil(math.log10(high)))]
    apart = (high / low) ** 0.25
    between = [x for x in powers if low * apart <= x <= high / apart]
    return [low, *between[:: 1 + len(between) // 4], high]


def draw_rates(trials: Sequence[Trials]) -> Markup:
    """Draw the loss of the first trials by learning rate, the other candidates in grey.

    A curve ends where trainings diverge. Each × is a trial of an option; a ring marks the setting
    that was chosen.
    """
    rows = math.ceil(len(trials) / COLUMNS)
    curves = [x.rate_losses for x in trials]
    finite = [loss for x in trials for loss in x.losses.values() if math.isfinite(loss)]
    with svg_settings():
        figure = new_figure(2.4 * COLUMNS, PANEL_HEIGHT * rows + 0.4)
        panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
        for index, (axes, trial) in enumerate(zip(panels, trials, strict=False)):
            style_axes(axes)
            axes.tick_params(labelsize=8)
            title = fill(trial.label, LABEL_LENGTH, max_lines=2, placeholder="…")
            axes.set_title(title, loc="left", fontsize=9)
            for curve in curves:
                axes.plot(*zip(*curve.items(), strict=True), color=GRID, linewidth=1, zorder=1)
            style = series_style(index) | {"gid": f"row-{index}", "markersize": 4}
            axes.plot(*zip(*curves[index].items(), strict=True), **style)
            marks: Any = {"color": style["color"], "linestyle": "none"}
            options = [(x.rate, loss) for x, loss in trial.losses.items() if x.option]
            if options:
                axes.plot(*zip(*options, strict=True), marker="x", **marks)
            if (chosen := trial.chosen) is not None:
                ring: Any = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
                axes.plot([chosen.rate], [trial.losses[chosen]], **marks, **ring)
        for axes in panels[len(trials) :]:
            axes.set_axis_off()
        panels[0].set_xscale("log")
        rates = [rate for curve in curves for rate in curve]
        panels[0].set_xticks(rate_ticks(min(rates), max(rates)))
        panels[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        panels[0].xaxis.set_minor_locator(NullLocator())
        if finite:
            low, high = min(finite), max(finite)
            margin = 0.1 * (high - low) or 0.1
            panels[0].set_ylim(low - margin, high + margin)
        for axes in panels[max(0, len(trials) - COLUMNS) : len(trials)]:
            axes.tick_params(labelbottom=True)  # Of the lowest of each column.
        figure.supxlabel(AXIS, x=0.07, ha="left", fontsize=9)
        figure.supylabel("nats per token", fontsize=9)
        return figure_svg(figure, TITLE, [x.label for x in trials])
