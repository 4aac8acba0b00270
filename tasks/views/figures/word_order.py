"""The picture of word order: the same words in two orders, without and with positions."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.figures import style
from attention_zoo.tasks.views.figures.seeding import fixed_seed

SENTENCE = ("dog", "bites", "man")
REORDERED = ("man", "bites", "dog")


def attention_outputs(position: str | None, *sentences: tuple[str, ...]) -> list[Tensor]:
    """Return the output [t d] of self-attention with the same weights for each sentence."""
    with fixed_seed():
        # With long vectors, an untrained attention prefers some words, as a trained one does.
        vectors = {word: 3 * torch.randn(12) for word in sorted(SENTENCE)}
        attention = create_attention(
            "multi_head", dim=12, heads=2, role="global", position=position
        )
    with torch.inference_mode():
        return [attention(torch.stack([vectors[w] for w in words])[None])[0] for words in sentences]


def output_differences(position: str | None) -> dict[str, float]:
    """Compare the outputs for each word in the two orders: ‖one − other‖ / ‖one‖."""
    one, other = attention_outputs(position, SENTENCE, REORDERED)
    other = other[[REORDERED.index(word) for word in SENTENCE]]
    # In single precision, the same sum in another order differs in its last digits.
    differences = ((one - other).norm(dim=-1) / one.norm(dim=-1)).round(decimals=5)
    return dict(zip(SENTENCE, differences.tolist(), strict=True))


def draw_word_order() -> Figure:
    """Draw outputs for the same words in two orders, without and with positions."""
    figure = style.new_figure(9.4, 4.6)
    axes = figure.subplots(2, 3, width_ratios=(1, 1, 0.8))
    draw_row(axes[0], None, "without positions")
    draw_row(axes[1], "rotary", "with rotary positions")
    largest = max(output_differences("rotary").values())
    for axis in axes[:, 2]:
        axis.set(xlim=(0, 1.25 * largest))
    return figure


def draw_row(axes: list[Axes], position: str | None, title: str) -> None:
    """Draw the outputs for both orders with one encoding, and their differences."""
    outputs = attention_outputs(position, SENTENCE, REORDERED)
    limit = max(output.abs().max().item() for output in outputs)
    for axis, words, output in zip(axes[:2], (SENTENCE, REORDERED), outputs, strict=True):
        axis.imshow(output.numpy(), cmap=style.DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        style.label_cells(axis, [], words)
        axis.tick_params(labelsize=style.LABEL_SIZE)
        axis.set_title(f"“{' '.join(words)}”, {title}", fontsize=style.LABEL_SIZE)
        axis.set_xlabel("output vector of each word")
    differences = output_differences(position)
    style.draw_bars(axes[2], [*differences], [*differences.values()], height=0.6)
    axes[2].tick_params(axis="y", labelsize=style.LABEL_SIZE)
    axes[2].set(ylim=(len(SENTENCE) - 0.5, -0.5), xlabel="difference of the outputs")
