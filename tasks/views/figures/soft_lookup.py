"""The picture of attention as a dictionary that answers with a mixture of its values."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention_zoo.lookup import soft_lookup
from attention_zoo.tasks.views.figures import style

ENTRIES = {"color": "blue", "age": 22, "type": "pickup"}
QUERY = "species"
# Made by hand: how much a word is about what a thing is, and about how it looks.
MEANINGS = {"type": (1.0, 0.1), "species": (0.9, 0.3), "color": (0.25, 0.8), "age": (-0.6, 0.5)}
COLOURS = {"color": style.BLUE, "age": style.RED, "type": style.GREEN}


def value_weights(temperature: float) -> list[float]:
    """Return the weight of each value of `ENTRIES`, in their order, for `QUERY`."""
    answer = soft_lookup(ENTRIES, QUERY, MEANINGS, temperature=temperature)
    assert isinstance(answer, dict)
    return [answer[value].item() for value in ENTRIES.values()]


def draw_soft_lookup() -> Figure:
    """Draw keys and query as arrows, weights of the values, weights by temperature."""
    figure = style.new_figure(10, 3.7)
    axes = figure.subplots(1, 3, width_ratios=(1.15, 0.95, 1.15))
    for draw, axis in zip((draw_meanings, draw_weights, draw_curves), axes, strict=True):
        draw(axis)
        axis.title.set_fontsize(style.LABEL_SIZE)
        style.despine(axis)
    return figure


def draw_meanings(axis: Axes) -> None:
    """Draw the vectors of the keys and of the query as arrows."""
    points = ((0.72, -0.09), (0.72, 0.36), (0.3, 0.83), (-0.72, 0.55))  # of the words
    for (word, meaning), point in zip(MEANINGS.items(), points, strict=True):
        colour = COLOURS.get(word, style.BLACK)
        line, name = ("--", f"{word!r}?") if word == QUERY else ("-", repr(word))
        options = {"color": colour, "linewidth": 2.2, "linestyle": line, "mutation_scale": 16}
        style.draw_arrow(axis, (0, 0), meaning, **options)
        draw_label(axis, point, name, colour)
    axis.axhline(0, color=style.GREY, linewidth=0.6, zorder=0)
    axis.axvline(0, color=style.GREY, linewidth=0.6, zorder=0)
    axis.set(xlim=(-0.8, 1.25), ylim=(-0.2, 1.0), xticks=[], yticks=[])
    axis.set(xlabel="about what a thing is", ylabel="about how it looks")
    axis.set_title("Keys and the query,\na word that is no key")


def draw_weights(axis: Axes) -> None:
    """Draw the weight of each value as a bar."""
    names, colours = [*map(repr, ENTRIES.values())], [*COLOURS.values()]
    bars = axis.bar(names, value_weights(1.0), color=colours, width=0.65)
    axis.bar_label(bars, fmt="%.2f", fontsize=style.LABEL_SIZE, padding=2)
    axis.set(ylim=(0, 1), ylabel="weight", xlabel="value")
    axis.set_title("All values have a weight,\nthe nearest key the largest")
    axis.tick_params(axis="x", labelsize=style.LABEL_SIZE)


def draw_curves(axis: Axes) -> None:
    """Draw the weight of each value as a curve over temperature."""
    temperatures = torch.logspace(-2, 1.3, 100).tolist()
    curves = torch.tensor([value_weights(temperature) for temperature in temperatures]).T
    for curve, colour in zip(curves, COLOURS.values(), strict=True):
        axis.plot(temperatures, curve, color=colour, linewidth=2.2)
    axis.axvline(1, color=style.GREY, linewidth=1, linestyle=":")
    axis.set(xscale="log", ylim=(-0.02, 1.04), xlabel="temperature τ", ylabel="weight")
    axis.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    for key, point in (("type", (0.013, 0.92)), ("color", (0.13, 0.29)), ("age", (1.6, 0.1))):
        draw_label(axis, point, repr(ENTRIES[key]), COLOURS[key])
    axis.set_title("Low τ: a normal dictionary;\nhigh τ: an average")


def draw_label(axis: Axes, point: tuple[float, float], text: str, colour: str) -> None:
    """Write a word in its colour at the right of a point."""
    options: style.Options = {"ha": "left", "va": "baseline", "fontweight": "bold"}
    style.draw_text(axis, *point, text, size=style.LABEL_SIZE, color=colour, **options)
