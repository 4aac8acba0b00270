"""Attention as a dictionary that answers with a mixture."""

from typing import TYPE_CHECKING

import torch

from attention_zoo.lookup import soft_lookup
from attention_zoo.tasks.views.figures.drawing import plain
from attention_zoo.tasks.views.figures.style import BLACK, BLUE, GREEN, RED, SOFT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAR = {"color": "blue", "age": 22, "type": "pickup"}
ASKED = "species"
# Made by hand: how much a word is about what a thing is, and about how it looks.
MEANINGS = {
    "type": (1.0, 0.1),
    "species": (0.9, 0.3),
    "color": (0.25, 0.8),
    "age": (-0.6, 0.5),
}
COLOURS = {"color": BLUE, "age": RED, "type": GREEN}


def weights_of_values(temperature: float) -> list[float]:
    """The weight of each value of `CAR`, in its order, when it is asked for `ASKED`."""
    answer = soft_lookup(CAR, ASKED, MEANINGS, temperature=temperature)
    assert isinstance(answer, dict)
    return [answer[value].item() for value in CAR.values()]


def soft_dictionary() -> "Figure":
    """A word that is no key is looked up: the meanings, the answer, and what temperature does."""
    figure = new_figure(10, 3.7)
    plane, bars, curves = figure.subplots(1, 3, width_ratios=(1.15, 0.95, 1.15))
    draw_meanings(plane)

    values = [repr(value) for value in CAR.values()]
    weights = weights_of_values(1.0)
    drawn = bars.bar(values, weights, color=list(COLOURS.values()), width=0.65)
    bars.bar_label(drawn, [f"{weight:.2f}" for weight in weights], fontsize=11, padding=2)
    bars.set(ylim=(0, 1), ylabel="weight", xlabel="value")
    bars.set_title("Every value answers,\nthe nearest key's most", fontsize=11)
    bars.tick_params(axis="x", labelsize=11)
    plain(bars)

    temperatures = torch.logspace(-2, 1.3, 100).tolist()
    lines = torch.tensor([weights_of_values(temperature) for temperature in temperatures]).T
    for line, colour in zip(lines, COLOURS.values(), strict=True):
        curves.plot(temperatures, line, color=colour, linewidth=2.2)
    curves.axvline(1, color=SOFT, linewidth=1, linestyle=":")
    curves.set(xscale="log", ylim=(-0.02, 1.04), xlabel="temperature τ", ylabel="weight")
    curves.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    for key, place in (("type", (0.013, 0.92)), ("color", (0.13, 0.29)), ("age", (1.6, 0.1))):
        text = repr(CAR[key])
        curves.text(*place, text, color=COLOURS[key], fontsize=11, fontweight="bold")
    curves.set_title("Cold, it is a plain dictionary;\nhot, an average", fontsize=11)
    plain(curves)
    return figure


def draw_meanings(axis: "Axes") -> None:
    """Keys and the word asked for as arrows in their plane."""
    for word, (x, y) in MEANINGS.items():
        asked = word == ASKED
        colour = BLACK if asked else COLOURS[word]
        style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
        style |= {"linewidth": 2.2, "linestyle": "--" if asked else "-", "mutation_scale": 16}
        axis.annotate("", xy=(x, y), xytext=(0, 0), arrowprops=style)
    for word, place in (
        ("type", (0.72, -0.09)),
        ("species", (0.72, 0.36)),
        ("color", (0.3, 0.83)),
        ("age", (-0.72, 0.55)),
    ):
        text = f"{word!r}?" if word == ASKED else repr(word)
        axis.text(*place, text, color=COLOURS.get(word, BLACK), fontsize=11, fontweight="bold")
    axis.axhline(0, color=SOFT, linewidth=0.6, zorder=0)
    axis.axvline(0, color=SOFT, linewidth=0.6, zorder=0)
    axis.set(xlim=(-0.8, 1.25), ylim=(-0.2, 1.0), xticks=[], yticks=[])
    axis.set(xlabel="about what a thing is", ylabel="about how it looks")
    axis.set_title("Keys, and the word\nthat is asked for", fontsize=11)
    plain(axis)
