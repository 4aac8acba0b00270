"""Which attention and which encoding each layer of a model has.

A uniform stack repeats one attention and one encoding. Another one has kinds of layers, single
letters, and a pattern of them for each role.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle, islice
from types import NoneType
from typing import Any, NamedTuple

from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.task_spec import task_spec

# The option of `stack` that holds the pattern of each role.
ROLE_PATTERNS = {
    "attention": "decoder_pattern",
    "encoder_attention": "encoder_pattern",
    "decoder_attention": "decoder_pattern",
    "cross_attention": "cross_pattern",
}
# The option of a model that holds which layers of a role share keys and values.
ROLE_SHARING = {
    "attention": "share_kv",
    "encoder_attention": "encoder_share_kv",
    "decoder_attention": "decoder_share_kv",
    "cross_attention": "cross_share_kv",
}
PATTERNS = ("pattern", *dict.fromkeys(ROLE_PATTERNS.values()))
ELEMENT = re.compile(r"[a-zA-Z](?:\+[a-zA-Z])*")
TOKEN = re.compile(rf"({ELEMENT.pattern})|(\()|(\))|\*(\d*)|\s+")
GRAMMAR = "letters of kinds, as in aaab, 'a*5 b', 'a* b', a+b or aA"


class Branch(NamedTuple):
    """One mechanism of a layer, by its config."""

    path: str  # of the attention's node, such as `attention` or `stack.a`
    attention: Mapping[str, Any]
    position: Mapping[str, Any] | None  # None where it is not chosen, and in cross-attention


Layers = list[tuple[Branch, ...]]


def is_mixed(config: Mapping[str, Any]) -> bool:
    """Return whether a config has kinds of layers, or patterns of them."""
    return any(value is not None for value in (config.get("stack") or {}).values())


def layers_by_role(config: Mapping[str, Any]) -> dict[str, Layers]:
    """Return the mechanisms of every layer, for each role of the task."""
    stack = config.get("stack") or {}
    layers: dict[str, Layers] = {}
    for role in task_spec(config).attention_roles:
        count = layer_count(config, role)
        check_chosen(config, role)
        pattern = role_pattern(config, role)
        position = None if role == "cross_attention" else config["position"]
        if pattern is None:
            path = role if config[role] else "attention"
            branch = Branch(path, config[path], position)
            layers[role] = [(branch,) for _ in range(count)]
            continue
        layers[role] = [
            tuple(kind_branch(stack, letter, position) for letter in element.split("+"))
            for element in expand_pattern(pattern, count)
        ]
    return layers


def kv_sources_by_role(config: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Return the layer whose keys and values each layer reads, for roles in which any is read.

    A capital letter is a layer that reads those of the nearest earlier layer of its kind with its
    own. None stands for a layer with its own.

    Raises:
        UserError: there is no such layer.
    """
    sources: dict[str, list[int | None]] = {}
    for role in task_spec(config).attention_roles:
        pattern = role_pattern(config, role)
        if pattern is None:
            continue
        elements = expand_pattern(pattern, layer_count(config, role))
        nearest: dict[str, int] = {}
        found: list[int | None] = []
        for index, element in enumerate(elements):
            nearest |= {letter: index for letter in element.split("+") if letter.islower()}
            if element.islower():
                found.append(None)
            elif element.lower() in nearest:
                found.append(nearest[element.lower()])
            else:
                raise UserError(
                    f"{role}, layer {index}: {element} reads the keys and values of the nearest "
                    f"earlier layer {element.lower()}, and there is none. Give another pattern: "
                    f"stack.{ROLE_PATTERNS[role]}."
                )
        if any(source is not None for source in found):
            sources[role] = found
    return sources


def check_chosen(config: Mapping[str, Any], role: str) -> None:
    """Refuse an attention that is given as an option, and not chosen as a group."""
    if not isinstance(config[role], Mapping | NoneType):
        raise UserError(
            f"{role} is chosen as a group, got {role}={config[role]}; "
            f"give attention@{role}={config[role]}."
        )


def kind_branch(
    stack: Mapping[str, Any], letter: str, position: Mapping[str, Any] | None
) -> Branch:
    """Return the mechanism of a kind, with its own encoding or else a given one."""
    letter = letter.lower()
    kind = stack.get(letter)
    if not isinstance(kind, Mapping):
        kinds = ", ".join(letter for letter in kinds_of(stack) if stack[letter])
        raise UserError(
            f"stack.pattern has the kind {letter}, which is not chosen: give "
            f"attention@stack.{letter}=NAME. Kinds: {kinds or 'none'}."
        )
    attention = {key: value for key, value in kind.items() if key != "position"}
    return Branch(f"stack.{letter}", attention, kind.get("position") or position)


def kinds_of(stack: Mapping[str, Any]) -> list[str]:
    """Return the letters of the kinds in a stack."""
    return [key for key in stack if len(key) == 1]


def branches_by_role(config: Mapping[str, Any]) -> dict[str, list[Branch]]:
    """Return the different mechanisms of each role, in the order of their first layer."""
    return {
        role: list({branch.path: branch for branch in chain(*layers)}.values())
        for role, layers in layers_by_role(config).items()
    }


def layer_count(config: Mapping[str, Any], role: str) -> int:
    """Return the number of layers that have an attention of a role."""
    model = config["model"]
    part = "encoder_layers" if role == "encoder_attention" else "decoder_layers"
    name = "layers" if model.get(part) is None else part
    # What resolves a config reads the number before its options are checked.
    check_positive(**{f"model.{name}": model[name]})
    return int(model[name])


def role_pattern(config: Mapping[str, Any], role: str) -> Any:
    """Return the pattern of a role; None where one attention is repeated."""
    if not is_mixed(config):
        return None
    stack, option = config["stack"], ROLE_PATTERNS[role]
    if not any(stack[letter] for letter in kinds_of(stack)):
        raise UserError(
            "a pattern of layers needs kinds of them: choose stack=hybrid, or a layout."
        )
    own = stack.get(option)
    if role != "attention" and config.get(role):
        if own is not None:
            raise UserError(
                f"{role} is chosen for all layers, and stack.{option} for each; give one of them."
            )
        return None
    pattern = own if own is not None or role == "cross_attention" else stack.get("pattern")
    if pattern is None and role != "cross_attention":
        raise UserError(f"stack needs a pattern, as stack.pattern=aaab; it must be {GRAMMAR}.")
    return pattern


def expand_pattern(pattern: str | Sequence[str], layers: int) -> list[str]:
    """Return the kind of each layer by a pattern: a letter, or several joined by `+`.

    `aaab` is repeated until all layers have a kind. `a*5 b` stands for `aaaaab`, and `(aab)*2` for
    `aabaab`. `a*` without a number fills what the others leave of the model; several share it
    evenly, the first ones get the rest. A list of letters is a pattern too. A capital letter stands
    for a layer that reads the keys and values of an earlier one of its kind.

    Raises:
        UserError: a pattern that cannot be read, or one that is longer than the model.
    """
    parts, shortest = parse_pattern(pattern), shortest_model(pattern)
    if shortest > layers:
        raise UserError(
            f"stack.pattern={written(pattern)} has {shortest} layers at least, and the model "
            f"{layers}; give model.layers={shortest}."
        )
    fills = [part for part in parts if part.repeats is None]
    if not fills:
        return [
            *islice(cycle(chain(*(part.elements * (part.repeats or 1) for part in parts))), layers)
        ]
    left = layers - sum(
        len(part.elements) * part.repeats for part in parts if part.repeats is not None
    )
    expanded: list[str] = []
    seen = 0
    for part in parts:
        count = len(part.elements) * (part.repeats or 0)
        if part.repeats is None:
            count = left // len(fills) + (seen < left % len(fills))
            seen += 1
        expanded += islice(cycle(part.elements), count)
    return expanded


class Part(NamedTuple):
    """Kinds of neighbouring layers, and how often they are repeated; None fills the model."""

    elements: list[str]
    repeats: int | None


def period(pattern: str | Sequence[str]) -> int:
    """Return the number of layers in which each part of a pattern stands once, as it is written."""
    return sum(len(x.elements) * (x.repeats or 1) for x in parse_pattern(pattern))


def shortest_model(pattern: str | Sequence[str]) -> int:
    """Return the smallest number of layers that a pattern stands for."""
    parts = parse_pattern(pattern)
    return sum(1 if x.repeats is None else len(x.elements) * x.repeats for x in parts)


def parse_pattern(pattern: str | Sequence[str]) -> list[Part]:
    """Split a pattern into kinds and their repetitions, or raise UserError."""
    if not isinstance(pattern, Sequence):
        raise UserError(unreadable(pattern))
    text = pattern if isinstance(pattern, str) else " ".join(map(str, pattern))
    parts: list[Part] = []
    group: list[str] | None = None
    for element, opened, closed, count in read_tokens(text):
        if element and group is None:
            parts.append(Part([element], 1))
        elif element and group is not None:
            group.append(element)
        elif opened and group is None:
            group = []
        elif closed and group:
            parts.append(Part(group, 1))
            group = None
        elif parts and group is None and parts[-1].repeats == 1 and count not in (None, "0"):
            parts[-1] = Part(parts[-1].elements, int(count) if count else None)
        else:
            raise UserError(unreadable(pattern))
    if group is not None or not parts:
        raise UserError(unreadable(pattern))
    return parts


def read_tokens(text: str) -> Iterator[tuple[str | None, ...]]:
    """Yield the tokens of a pattern without blanks, or raise UserError."""
    start = 0
    while start < len(text):
        token = TOKEN.match(text, start)
        if token is None:
            raise UserError(unreadable(text))
        start = token.end()
        if any(x is not None for x in token.groups()):
            yield token.groups()


def unreadable(pattern: object) -> str:
    """Return the sentence for a pattern that cannot be read."""
    return f"stack.pattern must be {GRAMMAR}, got {written(pattern)}."


def written(pattern: object) -> str:
    """Return a pattern as it was written."""
    if isinstance(pattern, str) or not isinstance(pattern, Sequence):
        return str(pattern)
    return f"[{','.join(map(str, pattern))}]"
