"""The picture of the three roles of attention in a Transformer, and their masks."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.factory import create_attention
from attention_zoo.masks import Columns, Mask
from attention_zoo.tasks.views.figures import style
from attention_zoo.zoo import Role

SOURCE = ("Today", "is", "March", "4")
TARGET = ("Hoje", "é", "4", "de", "março")
# Role, title, words of the queries, words of the keys.
LAYERS: tuple[tuple[Role, str, Sequence[str], Sequence[str]], ...] = (
    ("cross", "Cross-attention\nfrom decoder to encoder", TARGET, SOURCE),
    ("global", "Global self-attention\nin the encoder", SOURCE, SOURCE),
    ("causal", "Causal self-attention\nin the decoder", TARGET, TARGET),
)
HIGHLIGHTED = 2  # query


def role_mask(role: Role, queries: int, keys: int) -> Tensor:
    """Return the mask of a role, [q k]: True where the query may attend to the key."""
    attention = create_attention("multi_head", dim=4, heads=1, role=role)
    x = torch.zeros(1, queries, 4)
    context = torch.zeros(1, keys, 4) if role == "cross" else None
    return render_mask(attention.effective_mask(Mask(), x, context), queries, keys)


def render_mask(mask: Mask, queries: int, keys: int) -> Tensor:
    """Return a mask as a matrix [q k]."""
    visible = mask.dense(Columns(0, queries), Columns(0, keys), device=torch.device("cpu"))
    unmasked = torch.ones(queries, keys, dtype=torch.bool)
    return unmasked if visible is None else visible[0, 0].expand(queries, -1)


def draw_roles() -> Figure:
    """Draw cross, global and causal attention as lines between words, and as masks."""
    figure = style.new_figure(10.6, 5.7)
    figure.set_layout_engine("constrained", w_pad=0.15)
    axes = figure.subplots(2, 3, height_ratios=(1, 1.2))
    for (lines, grid), (role, title, queries, keys) in zip(axes.T, LAYERS, strict=True):
        visible = role_mask(role, len(queries), len(keys))
        draw_lines(lines, visible, queries, keys)
        draw_mask(grid, visible, queries, keys)
        lines.set_title(title, fontsize=style.TITLE_SIZE)
    return figure


def draw_lines(axis: Axes, visible: Tensor, queries: Sequence[str], keys: Sequence[str]) -> None:
    """Draw lines from queries above to the keys below that they may attend to."""
    # Both rows have the same width, whatever their numbers of words.
    query_x = torch.linspace(0, 1, len(queries)).tolist()
    key_x = torch.linspace(0, 1, len(keys)).tolist()
    for query, key in visible.nonzero().tolist():
        options: style.Options = {"color": style.BLUE, "linewidth": 1, "alpha": 0.4, "zorder": 1}
        if query == HIGHLIGHTED:
            options = {"color": style.RED, "linewidth": 2.4, "alpha": 1, "zorder": 2}
        axis.plot([query_x[query], key_x[key]], [1, 0], **options)
    for index, (x, word) in enumerate(zip(query_x, queries, strict=True)):
        options = {"color": style.BLACK}
        if index == HIGHLIGHTED:
            options = {"color": style.RED, "fontweight": "bold"}
        style.draw_text(axis, x, 1.05, word, size=style.LABEL_SIZE, va="bottom", **options)
    for x, word in zip(key_x, keys, strict=True):
        style.draw_text(axis, x, -0.05, word, size=style.LABEL_SIZE, va="top", color=style.BLACK)
    style.draw_text(axis, -0.2, 1.05, "query", ha="right", va="bottom", color=style.GREY)
    style.draw_text(axis, -0.2, -0.05, "key", ha="right", va="top", color=style.GREY)
    axis.set(xlim=(-0.42, 1.12), ylim=(-0.25, 1.25))
    axis.set_axis_off()


def draw_mask(axis: Axes, visible: Tensor, queries: Sequence[str], keys: Sequence[str]) -> None:
    """Draw a mask [q k] as a grid, coloured where the query may attend to the key."""
    cells = visible.int()
    cells[HIGHLIGHTED] *= 2
    colours = ListedColormap([style.EMPTY, style.BLUE, style.RED])
    axis.imshow(cells.numpy(), cmap=colours, vmin=0, vmax=2)
    style.label_cells(axis, keys, queries)
    axis.set_xticks([x + 0.5 for x in range(len(keys) - 1)], minor=True)
    axis.set_yticks([y + 0.5 for y in range(len(queries) - 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="keys", ylabel="queries")
