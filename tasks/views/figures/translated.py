"""A translation and where the model looked as it wrote: words of one language against another's."""

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.tokenizers import Tokenizer
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures.fonts import families, legible
from attention_zoo.tasks.views.figures.style import RED, WEIGHTS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Marks at the edges of a word stand for themselves; those within one, as in 12:30, are part of it.
_MARKS = ",.;:!?"
_WORD = re.compile(rf"[^\s{_MARKS}]+(?:[{_MARKS}]+[^\s{_MARKS}]+)*|[{_MARKS}]|\s+\Z")
_LETTER = 0.105  # width of a label's letter, in inches
_ROOMY = 0.45  # width of a cell, in inches, that holds a number
_WRITTEN_FROM = 0.1  # weights from here on are written into their cells


class Words(NamedTuple):
    """Words of a sequence of tokens: their names, and the number of the word of each token."""

    names: list[str]
    of_token: list[int]


def cross_attention(task: Any, line: str) -> "Figure":
    """A heat map of the words of a line against those of its translation.

    Shown is the mean of the heads of `clearest_layer`, with tokens joined to words by
    `between_words`. The strongest source word of each row is framed.

    Args:
        task: a `TranslationTask`, in evaluation mode.
        line: in the source language.

    Raises:
        UserError: the task is no translation.
    """
    from matplotlib.patches import Rectangle

    layers = translated(task, line).maps["cross"]
    layer = clearest_layer(layers)
    source, target = words_read_and_written(task, line)
    weights = between_words(layers[layer].mean(0), target.of_token, source.of_token)

    rows, columns = weights.shape
    sources, targets = ([legible(name) for name in side.names] for side in (source, target))
    cell = max(0.35, min(0.98, 9.0 / max(rows, columns)))  # inches
    figure = new_figure(
        max(4.0, columns * cell) + _LETTER * max(map(len, targets)) + 1.6,
        max(2.0, rows * cell * 0.6) + 1.6,
    )
    axis = figure.add_subplot()
    low, high = min(0.0, weights.min().item()), max(1.0, weights.max().item())
    image = axis.imshow(weights.numpy(), cmap=WEIGHTS, vmin=low, vmax=high, aspect="auto")
    for row, column in enumerate(weights.argmax(1).tolist()):
        axis.add_patch(
            Rectangle(
                (column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=RED, linewidth=3
            )
        )
    written = weights >= (_WRITTEN_FROM if cell >= _ROOMY else math.inf)
    for row, column in written.nonzero().tolist():
        weight = weights[row, column].item()
        colour = "black" if weight - low > 0.55 * (high - low) else "white"
        axis.text(column, row, f"{weight:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(columns), sources)
    axis.set_yticks(range(rows), targets)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.tick_params(length=0, labelsize=12, labelfontfamily=families())
    if _LETTER * max(map(len, sources)) > cell:
        axis.tick_params(axis="x", labelrotation=45)
        for label in axis.get_xticklabels():
            label.set(ha="left", rotation_mode="anchor")
    for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
        label.set_parse_math(False)
    axis.set_xlabel("source words (keys)", fontsize=11, labelpad=8)
    axis.set_ylabel("translated words (queries)", fontsize=11)
    heads = len(layers[layer])
    figure.suptitle(
        f"Cross-attention, layer {layer + 1} of {len(layers)}, "
        + (f"mean of {heads} heads" if heads > 1 else "1 head"),
        fontsize=13,
    )
    figure.colorbar(image, label="attention weight", pad=0.02)
    return figure


def translated(task: Any, line: str) -> AttentionRecord:
    """What a translation task looks at over a line.

    Raises:
        UserError: the task is no translation, so that nothing looks at a source.
    """
    reading: AttentionRecord = task.attend(line)
    if "cross" not in reading.maps:
        raise UserError(
            f"cross-attention needs task=translation, got a {type(task).__name__}, which has "
            "none; give the checkpoint of a translation."
        )
    return reading


def clearest_layer(layers: list[Tensor]) -> int:
    """The layer, from 0, whose mean of heads is most like an alignment.

    Of each layer's [h q k], the `shares` p of the mean over heads, and their entropy −Σ_k p log p,
    in its mean over queries: the layer with the lowest.
    """
    means = [shares(layer.mean(0)) for layer in layers]
    entropies = [-torch.xlogy(mean, mean).sum(-1).mean().item() for mean in means]
    return entropies.index(min(entropies))


def shares(weights: Tensor) -> Tensor:
    """Of weights [q k] those above zero, as shares of their sum: some attention has others too."""
    above = weights.clamp(min=0)
    return above / above.sum(-1, keepdim=True).clamp(min=torch.finfo(above.dtype).tiny)


def words_read_and_written(task: Any, line: str) -> tuple[Words, Words]:
    """The words of a line and those of its translation."""
    source = task.source_tokens([line])
    written = task.decode(source)[0][0].tokens
    return words(task.tokenizer, source[0, :-1].tolist()), words(task.tokenizer, written)


def words(tokenizer: Tokenizer, ids: list[int]) -> Words:
    """The words that tokens spell, and behind them `<eos>`, as a token and a word more.

    White space belongs to the word after it.
    """
    found = list(_WORD.finditer(tokenizer.decode(ids)))
    # Where a character takes several tokens, each of them reaches to its end.
    reached = [len(tokenizer.decode(ids[: place + 1])) for place in range(len(ids))]
    firsts = [min(start, end - 1) for start, end in zip([0, *reached], reached, strict=False)]
    of_token = [
        next(number for number, word in enumerate(found) if word.end() > first) for first in firsts
    ]
    return Words([*(word.group() for word in found), "<eos>"], [*of_token, len(found)])


def between_words(weights: Tensor, queries: list[int], keys: list[int]) -> Tensor:
    """Weights between tokens [q k] as weights between words [queries' words, keys' words].

    A query's word gives a key's word the sum over the key word's tokens, in the mean over the
    query word's tokens. So what adds up to one for tokens does so for words.

    Args:
        weights: [q k].
        queries, keys: the number of the word of each token.
    """
    of_query = one_hot(torch.tensor(queries)).to(weights.dtype)
    of_key = one_hot(torch.tensor(keys)).to(weights.dtype)
    return (of_query / of_query.sum(0)).T @ weights @ of_key
