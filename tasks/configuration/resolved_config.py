"""What is read off a resolved config in plain containers: its hash, its choices, its flat keys."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def hash_config(config: Mapping[str, Any], *, without: Sequence[str]) -> str:
    """Return the sha256 of a config without some of its keys."""
    content = {key: value for key, value in config.items() if key not in without}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_targets(node: Any) -> Iterator[str]:
    """Yield every `_target_` in a config."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = [*node.values()]
    if isinstance(node, list):
        for value in node:
            yield from find_targets(value)


def choice_name(node: Mapping[str, Any]) -> str:
    """Return what a node chose: its `name`, else the last word of its `_target_`."""
    return str(node.get("name") or str(node.get("_target_", "")).rpartition(".")[2])


def with_choice_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config to show: each group has the `name` that chose it on the command line."""
    shown = {key: value for key, value in config.items() if key != "choices"}
    for group, choice in config["choices"].items():
        if isinstance(shown.get(group), dict):
            shown[group] = {**shown[group], "name": choice}
    # The tokenizer is a group of its own, which is shown too.
    shown["data"] = {key: value for key, value in shown["data"].items() if key != "tokenizer"}
    return shown


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts under dotted keys; a list is a leaf, written as JSON."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def flat_hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as flat keys, for a logger to group, filter and colour runs by.

    The key of a group holds its choice: `attention: grouped_query`, `attention/kv_heads: 2`, and
    for one role `attention/cross: additive`. `logger` and `paths` do not say what was run. Log it
    before the fit: a run that crashes in its first step then has its config too.
    """
    flat: dict[str, Any] = {}
    for group, node in config.items():
        if group not in ("logger", "paths"):
            role, _, attention = group.rpartition("_")
            is_role = role and attention == "attention"
            flat.update(_hyperparameters(f"attention/{role}" if is_role else group, node))
    return flat


def _hyperparameters(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield key, node
        return
    if choice := choice_name(node):
        yield key, choice
    for name, value in node.items():
        if name != "name" and not (name.startswith("_") and name.endswith("_")):
            yield from _hyperparameters(f"{key}/{name}", value)
