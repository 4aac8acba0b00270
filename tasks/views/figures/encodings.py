"""How attention learns of places: four positional encodings, and what they make of distance."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_zoo.factory import create_position
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks.views.figures.drawing import plain, same_draw
from attention_zoo.tasks.views.figures.style import BLUE, SIGNED, SOFT, WEIGHTS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES, CHANNELS, HEADS = 64, 64, 8
DISTANCES = 48  # shown: of larger ones there are few pairs


def new_encoding(name: str, **options: Any) -> PositionalEncoding:
    """An encoding of the zoo, as it is before training."""
    sizes: dict[str, Any] = {"dim": CHANNELS, "heads": HEADS, "head_dim": CHANNELS}
    with same_draw():
        return create_position(name, **sizes, role="global", **options)


@torch.no_grad()
def vectors(name: str, **options: Any) -> Tensor:
    """What an encoding gives to each place, [t c]: adds to embeddings, or makes of heads of ones.

    The ones are scaled, so that a vector's product with itself is 1.
    """
    encoding = new_encoding(name, **options)
    positions = torch.arange(PLACES)[None]
    if "embeddings" in encoding.card.acts:
        return encoding.embed(torch.zeros(1, PLACES, CHANNELS), positions)[0]
    ones = torch.full((1, 1, PLACES, CHANNELS), CHANNELS**-0.5)
    return encoding.rotate(ones, ones, positions)[0][0, 0]


def over_distance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the products of two rows of [t c], by how far apart they stand, [t]."""
    products = rows @ rows.T
    diagonals = [products.diagonal(distance) for distance in range(len(rows))]
    means = torch.stack([diagonal.mean() for diagonal in diagonals])
    return means, torch.stack([diagonal.std(correction=0) for diagonal in diagonals])


@torch.no_grad()
def alibi_bias() -> Tensor:
    """What ALiBi adds to the scores of each head, [h q k]."""
    positions = torch.arange(PLACES)[None]
    bias = new_encoding("alibi").score_bias(positions, positions)
    assert bias is not None
    return bias[0]


def positional_encodings() -> "Figure":
    """Sinusoidal, learned, rotary, ALiBi: what they are, above what they make of distance."""
    figure = new_figure(12, 5.8)
    images, curves = figure.subplots(2, 4, height_ratios=(1.2, 1))
    shown = {
        "sinusoidal\nadded to embeddings": vectors("sinusoidal"),
        "learned\nadded; before training": vectors("learned", max_length=PLACES),
        "rotary\nturns queries and keys": vectors("rotary", layout="interleaved"),
    }
    for image, curve, (title, rows) in zip(images, curves, shown.items(), strict=False):
        most = rows.abs().max().item()
        drawn = image.imshow(rows.numpy(), cmap=SIGNED, vmin=-most, vmax=most, aspect="auto")
        draw_scale(drawn, image)
        image.set_title(title, fontsize=11)
        image.set(xlabel="channel", ylabel="position")
        draw_products(curve, rows / rows.norm(dim=-1).mean())
    draw_alibi(images[3], curves[3], alibi_bias())
    for curve in curves:
        curve.set(xlim=(0, DISTANCES), xlabel="distance")
        plain(curve)
    return figure


def draw_scale(drawn: Any, image: "Axes") -> None:
    """The colours of an image, and what they mean."""
    bar = image.figure.colorbar(drawn, ax=image, aspect=30, pad=0.03)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.locator_params(nbins=5)


def draw_products(axis: "Axes", rows: Tensor) -> None:
    """Products of the vectors of two places, as they stand further apart."""
    means, deviations = over_distance(rows)
    distances = torch.arange(PLACES)
    axis.fill_between(distances, means - deviations, means + deviations, color=BLUE, alpha=0.2)
    axis.plot(distances, means, color=BLUE, linewidth=2)
    axis.axhline(0, color=SOFT, linewidth=0.8)
    axis.set(ylim=(-0.5, 1.05), ylabel="product of two places")


def draw_alibi(image: "Axes", curve: "Axes", bias: Tensor) -> None:
    """The bias of one head, and that of all heads over distance."""
    heads = len(bias)
    shown = heads // 2
    draw_scale(image.imshow(bias[shown].numpy(), cmap=WEIGHTS, aspect="auto"), image)
    image.set_title(f"ALiBi\nadded to scores (head {shown + 1})", fontsize=11)
    image.set(xlabel="key", ylabel="query")
    for line in bias[:, 0]:
        curve.plot(line.numpy(), color=BLUE, linewidth=1.6)
    curve.text(4, -14.5, "head 1", fontsize=10)
    curve.text(DISTANCES, 0.4, f"head {heads}", fontsize=10, ha="right", va="bottom")
    curve.set(ylim=(-16, 2.4), ylabel="added to the score")
