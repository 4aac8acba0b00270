"""The registries: the entries of the zoo, and what each declares about itself.

An entry is a class with a card, registered under the card's name. The card is the only list: the
command line, the tests, the tables and every refusal read it.
"""

import importlib
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, Literal, TypeVar, get_args

from attention_zoo.errors import Unsupported, short_repr
from attention_zoo.stored_cards import read_stored_cards

log = logging.getLogger(__name__)

Role = Literal["causal", "global", "cross"]
Site = Literal["positions", "embeddings", "heads", "width", "length", "scores", "content", "values"]
Weights = Literal["distribution", "nonnegative", "signed"]
Cost = Literal["t", "t log t", "t²"]
ROLES: tuple[Role, ...] = get_args(Role)
# Where an encoding may act, in the words of a refusal.
SITES: dict[Site, str] = {
    "positions": "positions",
    "embeddings": "embeddings",
    "heads": "queries and keys",
    "width": "the width of queries and keys",
    "length": "cached keys, anew as the sequence grows",
    "scores": "scores by the positions of query and key",
    "content": "scores by the content of queries and keys",
    "values": "values by the positions of query and key",
}
# The model, not the attention, lets an encoding act here: before its layers.
BEFORE_ATTENTION: tuple[Site, ...] = ("positions", "embeddings")


# Names that options and choices have in other libraries; those of entries are on their cards.
SYNONYMS = {
    "adam": "adamw",
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "steps": "max_steps",
    "gpus": "devices",
    "batch_size": "tokens_per_batch",
    "vocab_size": "vocabulary_size",
    "hidden_size": "dim",
    "d_model": "dim",
    "embed_dim": "dim",
    "num_layers": "layers",
    "n_layers": "layers",
    "num_heads": "heads",
    "n_heads": "heads",
    "warmup": "warmup_steps",
    "beam_size": "width",
    "grad_clip": "gradient_clip_val",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What every entry declares.

    Args:
        name: on the command line, in configs and in Python.
        also_called: its names elsewhere. They are no names here; a refusal of one gives `name`.
        paper: authors, year, number and equation.
        equation: in one line.
        reference: the implementation that it is compared with, or `closed form`.
        deviations: where the entry differs from its paper, and why.
    """

    name: str
    also_called: tuple[str, ...] = ()
    paper: str
    equation: str
    reference: str
    deviations: str = ""


@dataclass(frozen=True, kw_only=True)
class AttentionCard(Card):
    """What an attention mechanism declares.

    Args:
        roles: it can play.
        masks: fields of `Mask` that it honours.
        positions: where an encoding may act on it.
        cache: what decoding keeps; empty if there is no cached decoding.
        weights: whether the weights of a query are a `distribution` over the keys that it sees,
            `nonnegative` or `signed`.
        chooses: what it selects by comparing scores, if it does; no gradient passes a selection.
        cost: how the time of training grows with t tokens.
        search_space: options that are worth tuning, each with two or three other values around its
            default, in the order in which `compare` tries them. These are numbers that change what
            the mechanism computes or where it starts, such as a temperature or an initial decay.
            None changes parameters, FLOPs or the state of decoding, as candidates would no longer
            cost the same: numbers of keys, features, slots or steps are compared as candidates. So
            are switches, which make another variant.
    """

    roles: tuple[Role, ...]
    masks: tuple[str, ...]
    positions: tuple[Site, ...]
    cache: str = ""
    weights: Weights = "distribution"
    chooses: str = ""
    cost: Cost = "t²"
    search_space: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PositionCard(Card):
    """What a positional encoding declares.

    Args:
        acts: the sites where it acts; none for no encoding.
        roles: of self-attention, in which it makes sense.
        per_layer: whether each layer has its own, or all layers share one.
        relative: whether attention sees distances only, so that shifted positions change nothing.
    """

    acts: tuple[Site, ...] = ()
    roles: tuple[Role, ...] = ("causal", "global")
    per_layer: bool = False
    relative: bool = True


C = TypeVar("C", bound=Card)
T = TypeVar("T")


class Registry(Generic[C]):
    """The classes of one kind, by the names on their cards.

    Names and cards are at hand without the classes, which are imported where they are asked for.
    """

    def __init__(self, kind: str, card_type: type[C]) -> None:
        self.kind = kind
        self.card_type = card_type
        self._entries: dict[str, type] = {}

    def register(self, **fields: Any) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that gives a class a card of these fields and registers it.

        Raises:
            ValueError: the name is taken by another class.
        """
        card = self.card_type(**fields)

        def add_entry(entry: type[T]) -> type[T]:
            taken = self._entries.get(card.name)
            # A module that is imported anew registers its class again: then both read the same.
            if taken is not None and repr(taken) != repr(entry):
                raise ValueError(f"{self.kind} {card.name!r} is registered already, by {taken}.")
            entry.card = card  # type: ignore[attr-defined]
            self._entries[card.name] = entry
            return entry

        return add_entry

    def __getitem__(self, name: str) -> type:
        if name not in self:
            message = unknown_name_message(self.kind, name, list(self))
            failures = discover() if stored_entries() is None else ()  # No plugin, no failure.
            raise Unsupported(" ".join([message, *failures]))
        if name not in self._entries:
            importlib.import_module(self._stored()[name].module)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._stored() or name in self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._stored(), *self._entries}))

    def card(self, name: str) -> C:
        """Return the card of an entry."""
        if name in self._entries or name not in self._stored():
            return self[name].card  # type: ignore[attr-defined]
        return self._stored()[name].card  # type: ignore[return-value]

    def _stored(self) -> Mapping[str, "StoredEntry"]:
        """Return what is stored of the entries; import all of them where that does not do."""
        if (stored := stored_entries()) is None:
            discover()
            return {}
        return stored[self.kind]


ATTENTION = Registry("attention", AttentionCard)
POSITION = Registry("position", PositionCard)


@dataclass(frozen=True)
class StoredEntry:
    """What `cards.json` says of an entry.

    Args:
        card: of the entry.
        module: that registers the entry.
        decode_state: the size of the cache by the number of tokens, as `list` shows it.
    """

    card: Card
    module: str
    decode_state: Mapping[int, int]


@cache
def stored_entries() -> dict[str, dict[str, StoredEntry]] | None:
    """Return what is stored of each entry, by kind and name.

    None where plugins add entries, or where the code of ours has changed since.
    """
    if entry_points(group="attention_zoo") or (stored := read_stored_cards()) is None:
        return None
    return {
        registry.kind: {
            name: StoredEntry(
                registry.card_type(**{field: tuples(x) for field, x in entry["card"].items()}),
                entry["module"],
                {int(tokens): size for tokens, size in entry["decode_state"].items()},
            )
            for name, entry in stored[registry.kind].items()
        }
        for registry in (ATTENTION, POSITION)
    }


def tuples(value: Any) -> Any:
    """Return the value of a card's field as it was before it became JSON, which has no tuples."""
    if isinstance(value, dict):
        return {key: tuples(x) for key, x in value.items()}
    return tuple(value) if isinstance(value, list) else value


@cache
def discover() -> tuple[str, ...]:
    """Import the modules that register entries: ours, and those of the entry points of plugins.

    Returns:
        A sentence on each plugin that cannot be imported. It is logged, and all other entries are
        at hand.
    """
    for package in ("attention_zoo.attention", "attention_zoo.position"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, prefix=f"{package}."):
            importlib.import_module(module.name)
    failures = []
    for plugin in entry_points(group="attention_zoo"):
        try:
            plugin.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            failures.append(
                f"The plugin {plugin.name} ({plugin.value}) cannot be imported: {reason}"
            )
            log.warning("%s", failures[-1])
    return tuple(failures)


def unknown_name_message(kind: str, name: str, legal: list[str]) -> str:
    """Return the message for an unknown name: what to write instead, then all choices."""
    hint = ""
    if called := [here for other, here in other_names(kind) if spell(other) == spell(name)]:
        hint = f" It is called {' or '.join(called)} here."
    elif near := nearest_names(kind, name, legal):
        hint = f" Did you mean {' or '.join(near)}?"
    return f"There is no {kind} {short_repr(name)}.{hint} Choices: {', '.join(legal)}."


def nearest_names(kind: str, name: str, legal: list[str]) -> list[str]:
    """Return at most three legal names for a name that is none, nearest first."""
    if SYNONYMS.get(name) in legal:
        return [SYNONYMS[name]]
    spelled = spell(name)
    if alike := [x for x in legal if spell(x) == spelled]:
        return alike
    if near := get_close_matches(spelled, [spell(x) for x in legal], n=3, cutoff=0.65):
        return [x for close in near for x in legal if spell(x) == close]
    others = other_names(kind)
    near = get_close_matches(spelled, [spell(x) for x, _ in others], n=3, cutoff=0.8)
    return [*dict.fromkeys(here for close in near for x, here in others if spell(x) == close)]


def other_names(kind: str) -> list[tuple[str, str]]:
    """Return what entries of a kind, such as `attention`, are called elsewhere, and here."""
    registries = [x for x in (ATTENTION, POSITION) if x.kind in kind.split(" or ")]
    cards = [x.card(name) for x in registries for name in x]
    return [(other, card.name) for card in cards for other in card.also_called]


def spell(name: str) -> str:
    """Return the letters and digits of a name, without a last word that says its kind."""
    letters = re.sub(r"[\W_]", "", str(name).lower())
    return re.sub(r"(?<=.)(attention|embeddings?|encoding|positions?)$", "", letters) or str(name)


def check_pair(attention: AttentionCard, role: Role, position: PositionCard | None = None) -> None:
    """Refuse a combination that the cards do not declare.

    Raises:
        Unsupported: with the rule, the value and the legal choices.
    """
    if role not in attention.roles:
        candidates = [name for name in ATTENTION if role in ATTENTION.card(name).roles]
        raise Unsupported(
            f"{attention.name} cannot be {role} attention; it can be "
            f"{join_names(attention.roles)}. For {role} attention choose from: "
            f"{', '.join(candidates)}."
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
        roles = join_names(position.roles)
        raise Unsupported(f"{position.name} cannot serve {role} attention; it serves {roles}.")
    if not accepts(attention, position):
        missing = [SITES[site] for site in position.acts if site not in attention.positions]
        cards = [POSITION.card(name) for name in POSITION]
        candidates = [x.name for x in cards if accepts(attention, x) and role in x.roles]
        raise Unsupported(
            f"{attention.name} cannot take position={position.name}, which acts on "
            f"{' and on '.join(missing)}. Positions it can take: {', '.join(candidates)}."
        )


def check_acts_inside(position: PositionCard) -> None:
    """Refuse an encoding that acts before a model's layers: on attention alone it has no effect."""
    before = tuple(site for site in position.acts if site in BEFORE_ATTENTION)
    if before:
        raise Unsupported(
            f"{position.name} acts on {join_names(before)}, before a model's layers; attention "
            "alone takes an encoding that acts inside it only."
        )


def accepts(attention: AttentionCard, position: PositionCard) -> bool:
    """Return whether the mechanism lets an encoding act wherever it acts."""
    return set(position.acts) <= set(attention.positions)


def join_names(words: tuple[str, ...]) -> str:
    """Return the names as an alternative: `a or b`."""
    return " or ".join(words) if words else "nothing"


def format_search_space(space: Mapping[str, tuple[float, ...]]) -> str:
    """Return `temperature=4.0,64.0`, as a sweep over the values is written."""
    return " ".join(f"{option}={','.join(map(str, x))}" for option, x in space.items())
