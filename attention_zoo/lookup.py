"""Attention in its smallest form: a dictionary that answers any query with a mixture."""

from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError, short_repr

Meaning = Tensor | Sequence[float]


def soft_lookup(
    entries: Mapping[str, Any],
    query: str,
    meanings: Mapping[str, Meaning],
    *,
    temperature: float = 1.0,
) -> Tensor | dict[Hashable, Tensor]:
    """Look up a word in a dictionary that need not contain it: softmax(q·K/τ) V.

    A plain dictionary returns the value of the key that equals the query. Here every key
    contributes, and more so the closer its meaning is to that of the query. The lower the
    temperature, the more the nearest key dominates; in the limit its value is the answer.

    The answer is differentiable in the meanings (the query and the keys), and in values that are
    tensors.

    Args:
        entries: the dictionary, key -> value.
        query: the word to look up.
        meanings: word -> vector [c], for the query and for every key. Attention learns them.
        temperature: τ, above 0. In attention it is √c.

    Returns:
        The mixture of the values, if they are numbers or tensors of one shape. Other values cannot
        be added: then a dictionary with the weight of each, which add up to 1.

    Raises:
        UserError: an empty dictionary, a word without a meaning, meanings of different widths,
            values that are tensors of different shapes, or a temperature of 0 or less.

    Source: Bahdanau et al. 2015, arXiv 1409.0473, §3.1; as queries, keys and values, Vaswani et
    al. 2017, arXiv 1706.03762, §3.2.

    These meanings are chosen by hand. The first number says how much a word describes what a thing
    is, the second how much it describes how the thing looks:

    >>> meanings = {
    ...     "type": [1.0, 0.1],
    ...     "species": [0.9, 0.3],
    ...     "color": [0.25, 0.8],
    ...     "age": [-0.6, 0.5],
    ... }
    >>> car = {"color": "blue", "age": 22, "type": "pickup"}
    >>> answer = soft_lookup(car, "species", meanings)
    >>> {value: round(weight.item(), 2) for value, weight in answer.items()}
    {'blue': 0.33, 22: 0.14, 'pickup': 0.53}
    >>> answer = soft_lookup(car, "species", meanings, temperature=0.05)
    >>> {value: round(weight.item(), 2) for value, weight in answer.items()}
    {'blue': 0.0, 22: 0.0, 'pickup': 1.0}

    Numbers are mixed:

    >>> soft_lookup({"color": 0.0, "type": 10.0}, "species", meanings)
    tensor(6.1420)
    """
    if not entries:
        raise UserError("a look-up needs at least one entry, got an empty dictionary.")
    if not isinstance(temperature, Real) or not temperature > 0:
        raise UserError(f"temperature must be a number above 0, got {short_repr(temperature)}.")
    if missing := [word for word in (query, *entries) if word not in meanings]:
        raise UserError(
            f"every word needs a meaning, got none of {missing[0]!r}; "
            f"those with one: {', '.join(meanings)}."
        )
    query_vector = torch.as_tensor(meanings[query])
    keys = [torch.as_tensor(meanings[key]) for key in entries]
    width = query_vector.shape
    if other := [key.shape for key in keys if key.ndim != 1 or key.shape != width]:
        raise UserError(
            f"meanings must be vectors of one width, got shapes {list(width)} and {list(other[0])}."
        )
    scores = (torch.stack(keys) * query_vector).sum(-1)
    weights = torch.softmax(scores / temperature, dim=0)
    values = list(entries.values())
    if all(isinstance(value, Tensor | int | float) for value in values):
        tensors = [torch.as_tensor(value, dtype=weights.dtype) for value in values]
        if len({value.shape for value in tensors}) > 1:
            shapes = ", ".join(str(list(value.shape)) for value in tensors)
            raise UserError(f"values must be tensors of one shape to be mixed, got {shapes}.")
        return torch.tensordot(weights, torch.stack(tensors), dims=1)
    answer: dict[Hashable, Tensor] = {}
    for value, weight in zip(values, weights, strict=True):
        answer[value] = answer[value] + weight if value in answer else weight
    return answer
