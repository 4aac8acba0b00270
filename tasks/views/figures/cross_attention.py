"""The picture of cross-attention in a translation, between the words of two languages."""

import math
import re
from bisect import bisect_right
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import one_hot

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.tokenizers import Tokenizer
from attention_zoo.tasks.views.attention_record import AttentionRecord, name_layer
from attention_zoo.tasks.views.figures import style

# A mark at the edge of a word is a word; a mark within one, as in 12:30, is a part of it.
_MARKS = ",.;:!?"
_WORD = re.compile(rf"[^\s{_MARKS}]+(?:[{_MARKS}]+[^\s{_MARKS}]+)*|[{_MARKS}]|\s+\Z")
_LETTER = 0.105  # width of a letter of a label, in inches


class Words(NamedTuple):
    """The words of a sequence of tokens. The last token and word is `<eos>`."""

    texts: list[str]
    word_ids: list[int]  # for each token, the index of its word


def draw_cross_attention(task: Any, line: str) -> Figure:
    """Draw cross-attention from the words of a translation to those of its source, the line.

    The task is a `TranslationTask` in evaluation mode. The weights are the mean of the heads of
    `lowest_entropy_layer`, joined to words by `aggregate_by_word`. A frame marks the largest weight
    of each row.
    """
    layers = record_translation(task, line).maps["cross"]
    layer = lowest_entropy_layer(layers)
    source, target = source_and_target_words(task, line)
    weights = aggregate_by_word(layers[layer].mean(0), target.word_ids, source.word_ids)

    rows, columns = weights.shape
    sources = [style.fit_label(text) for text in source.texts]
    targets = [style.fit_label(text) for text in target.texts]
    cell = max(0.35, min(0.98, 9.0 / max(rows, columns)))  # inches
    width = max(4.0, columns * cell) + _LETTER * max(map(len, targets)) + 1.6
    figure = style.new_figure(width, max(2.0, rows * cell * 0.6) + 1.6)
    axis = figure.add_subplot()
    low, high = min(0.0, weights.min().item()), max(1.0, weights.max().item())
    image = axis.imshow(weights.numpy(), cmap=style.SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
    for row, column in enumerate(weights.argmax(1).tolist()):
        corner = (column - 0.47, row - 0.47)
        axis.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, ec=style.RED, linewidth=3))
    labelled = weights >= (0.1 if cell >= 0.45 else math.inf)  # Small cells lack room for a number.
    for row, column in labelled.nonzero().tolist():
        weight = weights[row, column].item()
        colour = style.BLACK if weight - low > 0.55 * (high - low) else "white"
        style.draw_text(axis, column, row, f"{weight:.2f}", size=style.NOTE_SIZE, color=colour)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    rotated: style.Options = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
    is_wide = _LETTER * max(map(len, sources)) > cell
    style.label_cells(axis, sources, targets, **rotated if is_wide else {})
    axis.tick_params(length=0, labelsize=style.TITLE_SIZE)
    axis.set_xlabel("source words (keys)", fontsize=style.LABEL_SIZE, labelpad=8)
    axis.set_ylabel("target words (queries)", fontsize=style.LABEL_SIZE)
    heads = len(layers[layer])
    averaged = f"mean of {heads} heads" if heads > 1 else "1 head"
    title = f"Cross-attention, {name_layer(layer, len(layers))}, {averaged}"
    figure.suptitle(title, fontsize=style.HEADING_SIZE)
    figure.colorbar(image, label="attention weight", pad=0.02)
    return figure


def record_translation(task: Any, line: str) -> AttentionRecord:
    """Return the attention of a translation task over a line; refuse another task."""
    record: AttentionRecord = task.attend(line)
    if "cross" not in record.maps:
        raise UserError(
            f"cross-attention needs task=translation, got a {type(task).__name__}, which has "
            "none; give the checkpoint of a translation."
        )
    return record


def lowest_entropy_layer(layers: list[Tensor]) -> int:
    """Return the index of the layer [h q k] whose mean of heads has the lowest mean entropy.

    Such attention is most like an alignment of words. The entropy of a query is −Σ_k p log p.
    """
    means = [normalise_weights(layer.mean(0)) for layer in layers]
    entropies = [-torch.xlogy(mean, mean).sum(-1).mean().item() for mean in means]
    return entropies.index(min(entropies))


def normalise_weights(weights: Tensor) -> Tensor:
    """Set negative weights [q k] to zero, which some attention has, and make rows sum to 1."""
    positive = weights.clamp(min=0)
    return positive / positive.sum(-1, keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)


def source_and_target_words(task: Any, line: str) -> tuple[Words, Words]:
    """Return the words of a line and those of its translation."""
    source = task.source_tokens([line])
    tokens = source[0, :-1].tolist(), task.decode(source)[0][0].tokens
    source_words, target_words = (group_into_words(task.tokenizer, side) for side in tokens)
    return source_words, target_words


def group_into_words(tokenizer: Tokenizer, tokens: list[int]) -> Words:
    """Group token ids into the words that they spell, and add `<eos>` as a token and a word."""
    # White space belongs to the word after it.
    words = list(_WORD.finditer(tokenizer.decode(tokens)))
    # A character may take several tokens: then it ends where each of them ends.
    ends = [len(tokenizer.decode(tokens[: index + 1])) for index in range(len(tokens))]
    starts = [min(start, end - 1) for start, end in zip([0, *ends], ends, strict=False)]
    word_ends = [word.end() for word in words]
    word_ids = [bisect_right(word_ends, start) for start in starts]
    return Words([*(word.group() for word in words), "<eos>"], [*word_ids, len(words)])


def aggregate_by_word(weights: Tensor, query_words: list[int], key_words: list[int]) -> Tensor:
    """Sum weights [q k] over the tokens of each key word, then average over each query word."""
    queries, keys = (one_hot(torch.tensor(x)).to(weights.dtype) for x in (query_words, key_words))
    return (queries / queries.sum(0)).T @ weights @ keys
