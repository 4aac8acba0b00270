"""Causal computing: what comes later changes nothing that came before."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.figures.drawing import plain, same_draw
from attention_zoo.tasks.views.figures.style import BLUE, EMPTY, RED, WEIGHTS, new_figure
from attention_zoo.zoo import Role

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = ("quarta-feira", ",", "4", "de", "março", "de", "2026")
REPLACED = 4
ROLES: tuple[Role, Role] = ("causal", "global")
MOST = 1.6  # change, in the picture
DIM, HEADS = 32, 4


def changes(role: Role, words: int) -> Tensor:
    """How much attention's output at each place changes when one word is replaced.

    That is the length of the difference over the length of the output, for an attention before
    any training and random vectors for words.

    Args:
        role: `causal` or `global`. words: their number, t.

    Returns:
        [t t], a row for every word that is replaced, a column for every output.
    """
    with same_draw(), torch.no_grad():
        attention = create_attention(
            "multi_head", dim=DIM, heads=HEADS, role=role, position="rotary"
        )
        x = torch.randn(words, DIM).expand(words, -1, -1)
        replaced = x.clone()
        replaced[range(words), range(words)] = torch.randn(words, DIM)
        before = attention(x)
        after = attention(replaced)
    return (after - before).norm(dim=-1) / before.norm(dim=-1)


def causal_computing() -> "Figure":
    """What the change of a word does to every output: causal beside global attention."""
    from matplotlib import colormaps

    colours = colormaps[WEIGHTS].with_extremes(bad=EMPTY)
    figure = new_figure(9.4, 6.6)
    bars, maps = figure.subplots(2, 2, height_ratios=(1, 1.15))
    places = range(len(WORDS))
    for bar, grid, role in zip(bars, maps, ROLES, strict=True):
        changed = changes(role, len(WORDS))
        one = changed[REPLACED]
        bar.barh(places, one.numpy(), color=[RED if x == REPLACED else BLUE for x in places])
        for place in places:
            text = "0" if one[place] == 0 else f"{one[place]:.2f}"
            bar.text(one[place] + 0.02, place, text, va="center_baseline", fontsize=10)
        bar.set_yticks(places, WORDS)
        bar.set(xlim=(0, MOST), ylim=(len(WORDS) - 0.4, -0.6))
        bar.set_title(f"{role}: “{WORDS[REPLACED]}” is replaced", fontsize=12)
        bar.set_xlabel("change of the output")
        plain(bar)
        # What does not change at all has the colour of nothing.
        shown = changed.T.masked_fill(changed.T == 0, float("nan"))
        image = grid.imshow(shown.numpy(), cmap=colours, vmin=0, vmax=MOST, aspect="auto")
        grid.set_xticks(places, WORDS, rotation=35, ha="right", rotation_mode="anchor")
        grid.set_yticks(places, WORDS)
        grid.set_title(f"{role}: each word is replaced in turn", fontsize=12)
        grid.set_xlabel("word that is replaced")
        for axis in (bar, grid):
            axis.set_ylabel("output at")
            axis.tick_params(length=0, labelsize=10)
    figure.colorbar(image, ax=maps, label="change of the output; grey: none", pad=0.01)
    return figure
