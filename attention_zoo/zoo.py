"""The registries: what the zoo holds, and what each entry declares of itself.

An entry is a class with a card, registered under the card's name. The card is the only list there
is: the command line, the tests, the tables and every refusal read it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Generic, Literal, TypeVar, get_args

from attention_zoo.errors import Unsupported

Role = Literal["causal", "global", "cross"]
Site = Literal["positions", "embeddings", "heads", "width", "length", "scores", "content", "values"]
Weights = Literal["distribution", "nonnegative", "signed"]
Cost = Literal["t", "t log t", "t²"]
ROLES: tuple[Role, ...] = get_args(Role)
# Where an encoding may act, as a refusal says it.
SITES: dict[Site, str] = {
    "positions": "positions",
    "embeddings": "embeddings",
    "heads": "queries and keys",
    "width": "the width of queries and keys",
    "length": "cached keys, anew as the sequence grows",
    "scores": "scores by the places of query and key",
    "content": "scores by what queries and keys hold",
    "values": "values by the places of query and key",
}
# What a model does before its layers, not attention.
BEFORE_ATTENTION: tuple[Site, ...] = ("positions", "embeddings")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What every entry says of itself.

    `deviations` says where the entry differs from its paper, and why.
    """

    name: str
    paper: str
    equation: str
    reference: str
    deviations: str = ""


@dataclass(frozen=True, kw_only=True)
class AttentionCard(Card):
    """Of an attention mechanism.

    `roles` it can play; `masks`, the fields of `Mask` it honours; `positions`, where an encoding
    may act on it; `cache`, what decoding keeps (empty: no cached decoding), with `decode_state`,
    its numbers for one sequence and layer (t tokens, and the letters of `Attention.sizes`).
    `weights`: whether those of a query are a `distribution` over the keys it sees, `nonnegative` or
    `signed`. `chooses`: what it picks by comparing scores, if it does; no gradient passes a choice.
    `cost`: how the time of training grows with t tokens.
    """

    roles: tuple[Role, ...]
    masks: tuple[str, ...]
    positions: tuple[Site, ...]
    cache: str = ""
    decode_state: str = ""
    weights: Weights = "distribution"
    chooses: str = ""
    cost: Cost = "t²"


@dataclass(frozen=True, kw_only=True)
class PositionCard(Card):
    """Of a positional encoding.

    Where it `acts`: nowhere, or on some of `SITES`; in which self-attention `roles` it makes sense;
    whether each layer has one of its own (`per_layer`), or all share one; whether inside attention
    it knows distances only (`relative`), so that shifted positions change nothing.
    """

    acts: tuple[Site, ...] = ()
    roles: tuple[Role, ...] = ("causal", "global")
    per_layer: bool = False
    relative: bool = True


C = TypeVar("C", bound=Card)
T = TypeVar("T")


class Registry(Generic[C]):
    """Classes by the name on their cards."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, type] = {}

    def register(self, card: C) -> Callable[[type[T]], type[T]]:
        """Class decorator: gives the class its card and enters it.

        Raises:
            ValueError: the name is taken by another class.
        """

        def add_entry(entry: type[T]) -> type[T]:
            taken = self._entries.get(card.name)
            if taken is not None and origin(taken) != origin(entry):
                raise ValueError(f"{self.kind} {card.name!r} is registered already, by {taken}.")
            entry.card = card  # type: ignore[attr-defined]
            self._entries[card.name] = entry
            return entry

        return add_entry

    def __getitem__(self, name: str) -> type:
        discover()
        if name not in self._entries:
            raise Unsupported(unknown_name_message(self.kind, name, list(self)))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        discover()
        return iter(sorted(self._entries))

    def card(self, name: str) -> C:
        return self[name].card  # type: ignore[attr-defined]


ATTENTION: Registry[AttentionCard] = Registry("attention")
POSITION: Registry[PositionCard] = Registry("position")


@cache
def discover() -> None:
    """Import every module that registers entries: our own, and those of installed plugins.

    A plugin names its module under the entry point group `attention_zoo`.
    """
    for package in ("attention_zoo.attention", "attention_zoo.position"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, prefix=f"{package}."):
            importlib.import_module(module.name)
    for plugin in entry_points(group="attention_zoo"):
        plugin.load()


def origin(entry: type) -> tuple[str, str]:
    """Where a class is written: a module that is imported anew may register it again."""
    return entry.__module__, entry.__qualname__


def unknown_name_message(kind: str, name: str, legal: list[str]) -> str:
    """The sentence for a name that is not there: the nearest ones, then all."""
    near = get_close_matches(name, legal, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no {kind} {name!r}.{hint} Choices: {', '.join(legal)}."


def check_pair(attention: AttentionCard, role: Role, position: PositionCard | None = None) -> None:
    """Refuse a combination that the cards do not declare.

    Raises:
        Unsupported: with the rule, the value and the legal choices.
    """
    if role not in attention.roles:
        able = [name for name in ATTENTION if role in ATTENTION.card(name).roles]
        raise Unsupported(
            f"{attention.name} cannot be {role} attention; it can be {join_names(attention.roles)}. "
            f"For {role} attention choose from: {', '.join(able)}."
        )
    if position is None or not position.acts:
        return
    if role == "cross":
        if set(position.acts) <= set(BEFORE_ATTENTION):
            return
        raise Unsupported(
            f"{position.name} acts by the distance between positions, which the two sides of "
            "cross-attention do not share. Leave its position out."
        )
    if role not in position.roles:
        raise Unsupported(
            f"{position.name} cannot serve {role} attention; it serves {join_names(position.roles)}."
        )
    if not accepts(attention, position):
        missing = [SITES[site] for site in position.acts if site not in attention.positions]
        fitting = [
            name
            for name in POSITION
            if accepts(attention, POSITION.card(name)) and role in POSITION.card(name).roles
        ]
        raise Unsupported(
            f"{attention.name} cannot take position={position.name}, which acts on "
            f"{' and on '.join(missing)}. Positions it can take: {', '.join(fitting)}."
        )


def accepts(attention: AttentionCard, position: PositionCard) -> bool:
    """Whether the mechanism lets an encoding act on all that it acts on."""
    return set(position.acts) <= set(attention.positions)


def join_names(words: tuple[str, ...]) -> str:
    return " or ".join(words) if words else "nothing"
