"""The picture of four positional encodings, and of how they depend on distance."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.factory import create_position
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.seeding import fixed_seed

LENGTH, CHANNELS, HEADS = 64, 64, 8
MAX_DISTANCE = 48  # larger distances have few pairs


def create_encoding(name: str, **options: Any) -> PositionalEncoding:
    """Return an untrained encoding of the zoo."""
    sizes: dict[str, Any] = {"dim": CHANNELS, "heads": HEADS, "head_dim": CHANNELS}
    with fixed_seed():
        return create_position(name, **sizes, role="global", **options)


@torch.no_grad()
def position_vectors(name: str, **options: Any) -> Tensor:
    """Return the vectors [t c] that an encoding adds, or makes of constant queries."""
    encoding = create_encoding(name, **options)
    positions = torch.arange(LENGTH)[None]
    if "embeddings" in encoding.card.acts:
        return encoding.embed(torch.zeros(1, LENGTH, CHANNELS), positions)[0]
    heads = torch.full((1, 1, LENGTH, CHANNELS), CHANNELS**-0.5)
    return encoding.rotate(heads, heads, positions)[0][0, 0]


def products_by_distance(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the dot products of [t c] at each distance, both [t]."""
    products = vectors @ vectors.T
    diagonals = [products.diagonal(distance) for distance in range(len(vectors))]
    means = torch.stack([diagonal.mean() for diagonal in diagonals])
    return means, torch.stack([diagonal.std(correction=0) for diagonal in diagonals])


@torch.no_grad()
def alibi_bias() -> Tensor:
    """Return what ALiBi adds to the scores of each head, [h q k]."""
    positions = torch.arange(LENGTH)[None]
    bias = create_encoding("alibi").score_bias(positions, positions)
    assert bias is not None
    return bias[0]


def draw_positional_encodings() -> Figure:
    """Draw sinusoidal, learned, rotary and ALiBi encodings, and how they depend on distance."""
    figure = style.new_figure(12, 5.8)
    images, curves = figure.subplots(2, 4, height_ratios=(1.2, 1))
    vectors = {
        "sinusoidal\nadded to embeddings": position_vectors("sinusoidal"),
        "learned\nadded; before training": position_vectors("learned", max_length=LENGTH),
        "rotary\nrotates queries and keys": position_vectors("rotary", layout="interleaved"),
    }
    for image, curve, (title, values) in zip(images, curves, vectors.items(), strict=False):
        limit = values.abs().max().item()
        colours: style.Options = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit}
        draw_image(image, title, values, **colours)
        image.set(xlabel="channel", ylabel="position")
        means, deviations = products_by_distance(values / values.norm(dim=-1).mean())
        band = means - deviations, means + deviations
        curve.fill_between(range(LENGTH), *band, color=style.BLUE, alpha=0.2)
        curve.plot(means.numpy(), color=style.BLUE, linewidth=2)
        curve.axhline(0, color=style.GREY, linewidth=0.8)
        curve.set(ylim=(-0.5, 1.05), ylabel="dot product of positions")
    draw_alibi(images[3], curves[3])
    for curve in curves:
        curve.set(xlim=(0, MAX_DISTANCE), xlabel="distance")
        style.despine(curve)
    return figure


def draw_image(axis: Axes, title: str, values: Tensor, **options: Any) -> None:
    """Draw a matrix as an image, with a title and a colour bar beside it."""
    image = axis.imshow(values.numpy(), aspect="auto", **options)
    axis.set_title(title, fontsize=style.LABEL_SIZE)
    bar = axis.figure.colorbar(image, ax=axis, aspect=30, pad=0.03)
    bar.ax.tick_params(labelsize=style.NOTE_SIZE, length=2)
    bar.ax.locator_params(nbins=5)


def draw_alibi(image: Axes, curve: Axes) -> None:
    """Draw the bias of one head as an image, and that of all heads by distance."""
    bias = alibi_bias()
    title = f"ALiBi\nadded to scores (head {HEADS // 2})"
    draw_image(image, title, bias[HEADS // 2], cmap=style.SEQUENTIAL)
    image.set(xlabel="key", ylabel="query")
    curve.plot(bias[:, 0].T.numpy(), color=style.BLUE, linewidth=1.6)
    style.draw_text(curve, 4, -14.5, "head 0", ha="left", va="baseline")
    style.draw_text(curve, MAX_DISTANCE, 0.4, f"head {HEADS - 1}", ha="right", va="bottom")
    curve.set(ylim=(-16, 2.4), ylabel="added to the score")
