"""Order matters: the same words in another order, with and without a positional encoding."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_zoo.factory import create_attention
from attention_zoo.tasks.views.figures.drawing import plain, same_draw
from attention_zoo.tasks.views.figures.style import BLUE, SIGNED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE = ("dog", "bites", "man")
OTHER = ("man", "bites", "dog")
DIM, HEADS = 12, 2


def outputs(position: str | None, *sentences: tuple[str, ...]) -> list[Tensor]:
    """What self-attention gives for each sentence, [t d], with the same random vector for a word
    wherever it stands, and the same weights with any encoding.
    """
    with same_draw():
        # Long vectors, so that attention prefers some words to others as a trained one would.
        vectors = {word: 3 * torch.randn(DIM) for word in sorted({*ONE, *OTHER})}
        sizes = {"dim": DIM, "heads": HEADS}
        attention = create_attention("multi_head", role="global", position=position, **sizes)
    with torch.inference_mode():
        return [attention(torch.stack([vectors[w] for w in words])[None])[0] for words in sentences]


def differences(position: str | None) -> dict[str, float]:
    """How much the output for a word of `ONE` differs from that for the same word of `OTHER`: the
    length of the difference over the length of the output.
    """
    one, other = outputs(position, ONE, OTHER)
    moved = other[[OTHER.index(word) for word in ONE]]
    # In single precision, the same sum in another order differs in its last digits.
    shares = ((one - moved).norm(dim=-1) / one.norm(dim=-1)).round(decimals=5)
    return dict(zip(ONE, shares.tolist(), strict=True))


def order_matters() -> "Figure":
    """Outputs for two sentences of the same words, and their difference by word; without an
    encoding above, with rotary positions below.
    """
    figure = new_figure(9.4, 4.6)
    widest = 1.25 * max(differences("rotary").values())
    for row, (position, name) in zip(
        figure.subplots(2, 3, width_ratios=(1, 1, 0.8)),
        ((None, "without positions"), ("rotary", "with rotary positions")),
        strict=True,
    ):
        found = outputs(position, ONE, OTHER)
        most = max(output.abs().max().item() for output in found)
        pairs = zip((ONE, OTHER), found, strict=True)
        for axis, (words, output) in zip(row, pairs, strict=False):
            axis.imshow(output.numpy(), cmap=SIGNED, vmin=-most, vmax=most, aspect="auto")
            axis.set_yticks(range(len(words)), words, fontsize=11)
            axis.set_xticks([])
            axis.set_title(f"“{' '.join(words)}”, {name}", fontsize=11)
            axis.set_xlabel("output vector of each word")
        bars = row[2]
        shares = differences(position)
        drawn = bars.barh(range(len(ONE)), list(shares.values()), color=BLUE, height=0.6)
        labels = ["0" if share == 0 else f"{share:.2f}" for share in shares.values()]
        bars.bar_label(drawn, labels, padding=3, fontsize=10)
        bars.set_yticks(range(len(ONE)), ONE, fontsize=11)
        bars.set(xlim=(0, widest), ylim=(len(ONE) - 0.5, -0.5), xlabel="difference of the outputs")
        plain(bars)
    return figure
