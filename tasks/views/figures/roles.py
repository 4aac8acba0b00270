"""The three layers of a Transformer that attend: who sees whom."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_zoo.factory import create_attention
from attention_zoo.masks import Mask
from attention_zoo.tasks.views.figures.style import BLACK, BLUE, EMPTY, RED, SOFT, new_figure
from attention_zoo.zoo import Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = ("Today", "is", "March", "4")
TARGET = ("Hoje", "é", "4", "de", "março")
# Role, its name, where in the model it is, who looks, whom they look at.
LAYERS: tuple[tuple[Role, str, str, Sequence[str], Sequence[str]], ...] = (
    ("cross", "Cross-attention", "from decoder to encoder", TARGET, SOURCE),
    ("global", "Global self-attention", "in the encoder", SOURCE, SOURCE),
    ("causal", "Causal self-attention", "in the decoder", TARGET, TARGET),
)
PICKED = 2  # the query whose lines stand out


def who_sees(role: Role, queries: int, keys: int) -> Tensor:
    """Which of the keys each query may attend to by its role alone, [q k] bool."""
    attention = create_attention("multi_head", dim=4, heads=1, role=role)
    x = torch.zeros(1, queries, 4)
    context = torch.zeros(1, keys, 4) if role == "cross" else None
    mask = attention.effective_mask(Mask(), x, context)
    visible = mask.dense(range(queries), range(keys), device=x.device)
    # A mask that hides nothing is not rendered.
    return torch.ones(queries, keys).bool() if visible is None else visible[0, 0]


def who_sees_whom() -> "Figure":
    """Cross, global and causal attention: lines between two rows of words, and their masks."""
    figure = new_figure(10.6, 5.7)
    figure.set_layout_engine("constrained", w_pad=0.15)
    rows = figure.subplots(2, 3, height_ratios=(1, 1.2))
    for (lines, grid), (role, name, where, queries, keys) in zip(rows.T, LAYERS, strict=True):
        visible = who_sees(role, len(queries), len(keys))
        draw_lines(lines, visible, queries, keys)
        draw_mask(grid, visible, queries, keys)
        lines.set_title(f"{name}\n{where}", fontsize=12)
    return figure


def draw_lines(axis: "Axes", visible: Tensor, queries: Sequence[str], keys: Sequence[str]) -> None:
    """Those who look above, whom they see below, the lines of one query in red."""
    # Both rows are as wide, whatever their number of words.
    upper = torch.linspace(0, 1, len(queries)).tolist()
    lower = torch.linspace(0, 1, len(keys)).tolist()
    for query, key in visible.nonzero().tolist():
        picked = query == PICKED
        axis.plot(
            [upper[query], lower[key]],
            [1, 0],
            color=RED if picked else BLUE,
            linewidth=2.4 if picked else 1,
            alpha=1 if picked else 0.4,
            zorder=2 if picked else 1,
        )
    for places, words, y, side in ((upper, queries, 1.05, "bottom"), (lower, keys, -0.05, "top")):
        for number, (x, word) in enumerate(zip(places, words, strict=True)):
            text = axis.text(x, y, word, ha="center", va=side, fontsize=11, color=BLACK)
            if side == "bottom" and number == PICKED:
                text.set(color=RED, fontweight="bold")
    axis.text(-0.2, 1.05, "query", ha="right", va="bottom", fontsize=10, color=SOFT)
    axis.text(-0.2, -0.05, "key", ha="right", va="top", fontsize=10, color=SOFT)
    axis.set(xlim=(-0.42, 1.12), ylim=(-0.25, 1.25))
    axis.set_axis_off()


def draw_mask(axis: "Axes", visible: Tensor, queries: Sequence[str], keys: Sequence[str]) -> None:
    """A row a query, a column a key; coloured where the one sees the other."""
    from matplotlib.colors import ListedColormap

    shown = visible.int()
    shown[PICKED] *= 2
    axis.imshow(shown.numpy(), cmap=ListedColormap([EMPTY, BLUE, RED]), vmin=0, vmax=2)
    axis.set_xticks(range(len(keys)), keys, fontsize=10)
    axis.set_yticks(range(len(queries)), queries, fontsize=10)
    axis.set_xticks([x + 0.5 for x in range(len(keys) - 1)], minor=True)
    axis.set_yticks([y + 0.5 for y in range(len(queries) - 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="keys", ylabel="queries")
