"""The picture of causal attention: a word changes no output before it."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.seeding import fixed_seed
from attention_zoo.zoo import Role

WORDS = ("quarta-feira", ",", "4", "de", "março", "de", "2026")
REPLACED = 4  # index of the word that is replaced in the upper panels
MAX_CHANGE = 1.6


def output_changes(role: Role, length: int) -> Tensor:
    """Replace each word of a sequence in turn, and measure how much each output changes.

    The change is ‖after − before‖ / ‖before‖, for an untrained attention and random vectors as
    words. The result has a row for each word that is replaced, and a column for each output.
    """
    with fixed_seed(), torch.no_grad():
        attention = create_attention("multi_head", dim=32, heads=4, role=role, position="rotary")
        x = torch.randn(length, 32).expand(length, -1, -1)
        replaced = x.clone()
        replaced[range(length), range(length)] = torch.randn(length, 32)
        before, after = attention(x), attention(replaced)
    return (after - before).norm(dim=-1) / before.norm(dim=-1)


def draw_causality() -> Figure:
    """Draw changes of each output when a word is replaced: none before it with causal attention."""
    figure = style.new_figure(9.4, 6.6)
    bars, maps = figure.subplots(2, 2, height_ratios=(1, 1.15))
    roles: tuple[Role, Role] = ("causal", "global")
    for bar, grid, role in zip(bars, maps, roles, strict=True):
        changes = output_changes(role, len(WORDS))
        style.draw_bars(bar, WORDS, changes[REPLACED].tolist())
        bar.patches[REPLACED].set_facecolor(style.RED)
        for number in bar.texts:
            number.set(va="center_baseline")  # as the words
        bar.set(xlim=(0, MAX_CHANGE), ylim=(len(WORDS) - 0.4, -0.6), xlabel="change of the output")
        bar.set_title(f"{role}: “{WORDS[REPLACED]}” is replaced", fontsize=style.TITLE_SIZE)
        # An output that does not change at all is grey.
        cells = changes.T.masked_fill(changes.T == 0, float("nan"))
        colours = style.SEQUENTIAL.with_extremes(bad=style.EMPTY)
        image = grid.imshow(cells.numpy(), cmap=colours, vmin=0, vmax=MAX_CHANGE, aspect="auto")
        style.label_cells(grid, WORDS, WORDS, rotation=35, ha="right", rotation_mode="anchor")
        grid.set_xlabel("word that is replaced")
        grid.set_title(f"{role}: each word is replaced in turn", fontsize=style.TITLE_SIZE)
        for axis in (bar, grid):
            axis.set_ylabel("output at")
            axis.tick_params(length=0, labelsize=style.TEXT_SIZE)
    figure.colorbar(image, ax=maps, label="change of the output; grey: none", pad=0.01)
    return figure
