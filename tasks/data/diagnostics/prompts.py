"""Rows of prompts with answers, and how often the best guess without the prompt is right."""

from collections.abc import Sequence

import numpy as np

from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import QueryRows
from attention_zoo.tasks.data.tokenizers import BOS, PAD


def prompt_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    prompt_width: int,
    answer_width: int,
) -> QueryRows:
    """Return rows `bos prompt answer`: every token of the answer is to be predicted.

    The last token of an answer is no input. Shorter rows are padded at the right.

    Args:
        prompts: the token ids of each row's prompt.
        answers: the token ids of each row's answer.
        prompt_width: tokens of the longest prompt that may come.
        answer_width: tokens of the longest answer that may come.
    """
    inputs = np.full((len(prompts), prompt_width + answer_width), PAD)
    inputs[:, 0] = BOS
    asked = np.full((len(prompts), answer_width), IGNORE_INDEX)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = [*prompt, *answer[:-1]]
        inputs[row, 1 : 1 + len(tokens)] = tokens
        asked[row, : len(answer)] = answer
    last_of_prompt = np.array([len(prompt) for prompt in prompts])
    return QueryRows(inputs, last_of_prompt[:, None] + np.arange(answer_width), asked)


def most_frequent_share(answers: np.ndarray) -> float:
    """Return the share of the most frequent answer among those that are asked for."""
    _, counts = np.unique(answers[answers != IGNORE_INDEX], return_counts=True)
    return float(counts.max() / counts.sum())
