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

MOST_LAYERS = 1000
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
        check_chosen(config[role], role)
        elements = role_elements(config, role)
        position = None if role == "cross_attention" else config["position"]
        if elements is None:
            path = role if config[role] else "attention"
            branch = Branch(path, config[path], position)
            layers[role] = [(branch,) for _ in range(count)]
            continue
        layers[role] = [
            tuple(kind_branch(stack, letter, position) for letter in element.split("+"))
            for element in elements
        ]
    return layers


def kv_sources_by_role(config: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Return the layer whose keys and values each layer reads, for roles in which any is read.

    A capital letter is a layer that reads those of the nearest earlier layer of its kind with its
    own. None stands for a layer with its own. Without capital letters, the option of the model says
    which layers read, such as `model.share_kv`.

    Raises:
        UserError: there is no such layer, or both say it.
    """
    sources: dict[str, list[int | None]] = {}
    for role in task_spec(config).attention_roles:
        chosen = config["model"].get(ROLE_SHARING[role])
        if chosen is not None:
            sources[role] = chosen
        elements = role_elements(config, role)
        if elements is None:
            continue
        nearest: dict[str, int] = {}
        found: list[int | None] = []
        for index, element in enumerate(elements):
            nearest |= {letter: index for letter in element.split("+") if letter.islower()}
            if element.islower():
                found.append(None)
            elif "+" in element:
                raise UserError(
                    f"{role}, layer {index}: kinds side by side read no keys and values of other "
                    f"layers, got {element}. Give another pattern: stack.{ROLE_PATTERNS[role]}."
                )
            elif element.lower() in nearest:
                found.append(nearest[element.lower()])
            else:
                raise UserError(
                    f"{role}, layer {index}: {element} reads the keys and values of the nearest "
                    f"earlier layer {element.lower()}, and there is none. Give another pattern: "
                    f"stack.{ROLE_PATTERNS[role]}."
                )
        if any(source is not None for source in found):
            if chosen is not None:
                raise UserError(
                    f"model.{ROLE_SHARING[role]} and the capital letters of stack."
                    f"{ROLE_PATTERNS[role]} say which layers share keys and values; give one of "
                    "them."
                )
            sources[role] = found
    return sources


def check_chosen(node: object, path: str, group: str = "attention") -> None:
    """Refuse an entry that is given as an option, and not chosen as a group."""
    if not isinstance(node, Mapping | NoneType):
        raise UserError(
            f"{path} is chosen as a group, got {path}={node}; give {group}@{path}={node}."
        )


def check_kinds(stack: Mapping[str, Any]) -> None:
    """Refuse kinds of layers, and encodings of them, that are given as options."""
    for letter in kinds_of(stack):
        kind, path = stack[letter], f"stack.{letter}"
        check_chosen(kind, path)
        check_chosen((kind or {}).get("position"), f"{path}.position", "position")


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


def layer_option(config: Mapping[str, Any], role: str) -> str:
    """Return the option of the model that says how many layers have an attention of a role."""
    part = "encoder_layers" if role == "encoder_attention" else "decoder_layers"
    return "layers" if config["model"].get(part) is None else part


def layer_count(config: Mapping[str, Any], role: str) -> int:
    """Return the number of layers that have an attention of a role."""
    name = layer_option(config, role)
    # What resolves a config reads the number before its options are checked.
    check_positive(**{f"model.{name}": config["model"][name]})
    if config["model"][name] > MOST_LAYERS:
        raise UserError(
            f"model.{name} must be at most {MOST_LAYERS:,}, got {config['model'][name]:,}: each "
            "layer takes time and memory of its own, and the deepest published Transformers have "
            "1,000 (Wang et al. 2022, arXiv 2203.00555)."
        )
    return int(config["model"][name])


def role_elements(config: Mapping[str, Any], role: str) -> list[str] | None:
    """Return the kind of each layer of a role, or None where one attention is repeated.

    Raises:
        UserError: see `expand_pattern`.
    """
    pattern = role_pattern(config, role)
    if pattern is None:
        return None
    return expand_pattern(
        pattern,
        layer_count(config, role),
        option=pattern_option(config, role),
        layers_option=f"model.{layer_option(config, role)}",
    )


def pattern_option(config: Mapping[str, Any], role: str) -> str:
    """Return the option that holds the pattern of a role: that of all, or its own."""
    own = ROLE_PATTERNS[role]
    return "stack.pattern" if config["stack"].get(own) is None else f"stack.{own}"


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


def expand_pattern(
    pattern: str | Sequence[str],
    layers: int,
    *,
    option: str = "stack.pattern",
    layers_option: str = "model.layers",
) -> list[str]:
    """Return the kind of each layer by a pattern: a letter, or several joined by `+`.

    `aaab` is repeated until all layers have a kind. `a*5 b` stands for `aaaaab`, and `(aab)*2` for
    `aabaab`. `a*` without a number fills what the others leave of the model; several share it
    evenly, the first ones get the rest. A list of letters is a pattern too. A capital letter stands
    for a layer that reads the keys and values of an earlier one of its kind. A refusal names the
    options that hold the pattern and the number of layers.

    Raises:
        UserError: a pattern that cannot be read, or one that is longer than the model.
    """
    parts = parse_pattern(pattern, option)
    shortest = sum(1 if x.repeats is None else len(x.elements) * x.repeats for x in parts)
    if shortest > layers:
        raise UserError(
            f"{option}={written(pattern)} has {shortest} layers at least, and the model {layers}; "
            f"give {layers_option}={shortest}, or another pattern."
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


def parse_pattern(pattern: str | Sequence[str], option: str = "stack.pattern") -> list[Part]:
    """Split a pattern into kinds and their repetitions, or raise UserError."""
    if not isinstance(pattern, Sequence):
        raise UserError(unreadable(pattern, option))
    text = pattern if isinstance(pattern, str) else " ".join(map(str, pattern))
    parts: list[Part] = []
    group: list[str] | None = None
    for element, opened, closed, count in read_tokens(text, option):
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
            raise UserError(unreadable(pattern, option))
    if group is not None or not parts:
        raise UserError(unreadable(pattern, option))
    return parts


def read_tokens(text: str, option: str) -> Iterator[tuple[str | None, ...]]:
    """Yield the tokens of a pattern without blanks, or raise UserError."""
    start = 0
    while start < len(text):
        token = TOKEN.match(text, start)
        if token is None:
            raise UserError(unreadable(text, option))
        start = token.end()
        if any(x is not None for x in token.groups()):
            yield token.groups()


def unreadable(pattern: object, option: str) -> str:
    """Return the sentence for a pattern that cannot be read."""
    return f"{option} must be {GRAMMAR}, got {written(pattern) or 'nothing'}."


def written(pattern: object) -> str:
    """Return a pattern as it was written."""
    if isinstance(pattern, str) or not isinstance(pattern, Sequence):
        return str(pattern)
    return f"[{','.join(map(str, pattern))}]"
