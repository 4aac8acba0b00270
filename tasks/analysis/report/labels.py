"""Labels of rows: the options that set each row apart from the others."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Options = Mapping[str, Any]  # by flat keys; see `Run.options`

# Labels show the values of these without the names of the options.
VALUE_ONLY = ("choices.attention", "choices.position")
# Options come in the order of these prefixes, others last.
PREFIXES = (*VALUE_ONLY, "choices.attention@", "choices.", "model.")


class Labels(NamedTuple):
    """Labels of rows, the keys of the options in them, and a title for a column of labels."""

    texts: list[str]
    keys: list[str]
    title: str


def label_options(rows: Sequence[Options], swept: Sequence[str]) -> Labels:
    """Label rows by their options, among them those with the keys that a sweep varied."""
    keys = choose_keys(rows, swept)
    names = short_names(keys)
    single_choice = (
        len(keys) == 1
        and keys[0].startswith("choices.")
        and all(isinstance(row.get(keys[0]), str) for row in rows)
    )
    value_only = keys if single_choice else VALUE_ONLY
    texts = []
    for row in rows:
        values = [(key, row.get(key)) for key in keys]
        parts = [
            str(value) if key in value_only else f"{names[key]}={format_value(value)}"
            for key, value in values
        ]
        # A backtick would end the label where it is quoted.
        texts.append(" ".join(parts).replace("`", "'") or "the run")
    return Labels(texts, keys, names[keys[0]] if single_choice else "run")


def choose_keys(rows: Sequence[Options], swept: Sequence[str]) -> list[str]:
    """Return the keys of differing options that a sweep varied, and others until labels differ."""
    differing = differing_keys(rows)
    if not differing:
        return [key for key in VALUE_ONLY if key in rows[0]]
    keys = [key for key in swept if key in differing]
    for key in sorted(differing - {*keys}, key=display_order):
        if len(distinct_values(rows, [*keys, key])) > len(distinct_values(rows, keys)):
            keys.append(key)
    return sorted(keys, key=lambda key: (not key.startswith("choices."), display_order(key)))


def display_order(key: str) -> tuple[int, str]:
    """Return what keys are sorted by: choices come before their options."""
    matches = (number for number, prefix in enumerate(PREFIXES) if key.startswith(prefix))
    return next(matches, len(PREFIXES)), key


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last word of each key if no other key has the same: lr for optimizer.lr."""
    last = {key: key.replace("@", ".").rpartition(".")[2] for key in keys}
    words = list(last.values())
    return {
        key: word if words.count(word) == 1 else key.removeprefix("choices.")
        for key, word in last.items()
    }


def format_value(value: Any) -> str:
    """Return a value as it is written in an override."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def differing_keys(rows: Sequence[Options]) -> set[str]:
    """Return the keys of the options that are not the same in all rows."""
    keys = {key for row in rows for key in row}
    return {key for key in keys if len(distinct_values(rows, [key])) > 1}


def distinct_values(rows: Sequence[Options], keys: Sequence[str]) -> set[tuple[str, ...]]:
    """Return the combinations of values that the options of these keys have."""
    return {tuple(str(row.get(key)) for key in keys) for row in rows}
