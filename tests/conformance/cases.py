"""Every entry, in every role that its card declares, with every encoding that it takes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.zoo import (
    ATTENTION,
    BEFORE_ATTENTION,
    POSITION,
    AttentionCard,
    PositionCard,
    Role,
    Site,
)
from tests.conformance.configs import options, parameters

M = TypeVar("M", bound=nn.Module)

DIM = 16
# Of options that count tokens: small, so that short sequences go beyond them. The window is even,
# so that it is lopsided around a query.
SMALL = {
    "window": 4,
    "block": 4,
    "segment": 4,
    "stride": 3,
    "dilation": 3,
    "landmarks": 4,
    "top_k": 5,
    "original_length": 6,
    "clip": 3,
    "max_position": 3,
    "grid_height": 2,
    "grid_width": 3,
}


def small_options(name: str, group: str = "attention") -> dict[str, Any]:
    """Of an entry: those of its yaml, but for those that count tokens."""
    chosen = options(group, name)
    if chosen.get("window", 0) is None:
        return chosen | {
            name: value for name, value in SMALL.items() if name in {*chosen} - {"window"}
        }
    return chosen | {option: value for option, value in SMALL.items() if option in chosen}


def moved(module: M, *, scale: float = 0.1) -> M:
    """A module whose parameters are not those that training starts with.

    What is zero there, or the identity, would hide what it does.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


@dataclass(frozen=True)
class Case:
    """An entry in a role, with an encoding where one is named."""

    name: str
    role: Role
    position: str | None = None

    def __str__(self) -> str:
        return "-".join(part for part in (self.name, self.role, self.position) if part)

    @property
    def card(self) -> AttentionCard:
        return ATTENTION.card(self.name)

    @property
    def acts(self) -> tuple[Site, ...]:
        """Where its encoding acts."""
        return POSITION.card(self.position).acts if self.position else ()

    @property
    def kind(self) -> tuple[type, Role, tuple[Site, ...]]:
        """What cases have in common that share most of their code."""
        return base_class(self.name), self.role, self.acts

    @property
    def kind_of_any_role(self) -> tuple[type, bool, tuple[Site, ...]]:
        """The same for what the roles of self-attention have in common."""
        return base_class(self.name), self.role == "cross", self.acts

    @property
    def family_kind(self) -> tuple[str, bool, tuple[Site, ...]]:
        """The same for what costs seconds: mechanisms of one family are of one kind."""
        return family(self.name), self.role == "cross", self.acts

    @property
    def decodes(self) -> bool:
        """Whether it must have a cache: one that sees the future has nothing to keep."""
        return bool(self.card.cache) and self.role != "global"

    def attention(self, **changes: Any) -> Attention:
        """With parameters moved from where training starts."""
        sizes = {"dim": DIM} | small_options(self.name)
        attention = create_attention(self.name, role=self.role, **sizes | changes)
        if self.position is not None:
            chosen = small_options(self.position, "position")
            attention.attach_position(
                create_position(self.position, **attention.position_sizes, **chosen)
            )
        return moved(attention)

    def inputs(
        self, queries: int, keys: int | None = None, *, batch: int = 2, dim: int = DIM
    ) -> list[Tensor]:
        """x, and for cross-attention the context. Self-attention has as many keys as queries."""
        x = torch.randn(batch, queries, dim)
        if self.role != "cross":
            return [x]
        return [x, torch.randn(batch, queries if keys is None else keys, dim)]

    def honours(self, field: str) -> bool:
        """Whether a field of `Mask` must be obeyed; else it must be refused."""
        legal = {
            "causal": self.role != "cross",
            "window": self.role != "cross",
            "query_segment_ids": self.role == "cross",
        }
        return field in self.card.masks and legal.get(field, True)

    @property
    def packs(self) -> bool:
        """Whether several sequences may share a row."""
        return self.honours("segment_ids") and (
            self.role != "cross" or self.honours("query_segment_ids")
        )


def base_class(name: str) -> type:
    """Return the class that an attention varies: its own, if that is the contract itself."""
    base = ATTENTION[name].__mro__[1]
    return ATTENTION[name] if base is Attention else base


def family(name: str) -> str:
    """Return the package of a mechanism, such as that of dense ones."""
    return ATTENTION[name].__module__.rpartition(".")[0]


def fits(card: AttentionCard, role: Role, position: PositionCard) -> bool:
    """Whether the cards declare the pair for self-attention of this role."""
    acts = set(position.acts)
    return not acts or (role in position.roles and acts <= set(card.positions))


def inside(position: PositionCard) -> bool:
    """Whether the encoding acts inside attention."""
    return bool(position.acts) and not set(position.acts) & set(BEFORE_ATTENTION)


def plain_cases() -> Iterator[Case]:
    """Every entry in every role of its own.

    The one that bisects comes last: it is slow, and the first of a kind stands for the others.
    """
    for name in sorted(ATTENTION, key=lambda name: name == "entmax"):
        for role in ATTENTION.card(name).roles:
            yield Case(name, role)


def pairs() -> Iterator[Case]:
    """Every self-attention with every encoding that acts inside it and that the card takes."""
    for case in plain_cases():
        for name in POSITION:
            position = POSITION.card(name)
            if case.role != "cross" and inside(position) and fits(case.card, case.role, position):
                yield Case(case.name, case.role, name)


def representative_pairs() -> Iterator[Case]:
    """Of each entry, encodings that together act wherever any may; and all with `multi_head`."""
    covered: dict[tuple[str, Role], set[Site]] = {}

    # Those that act on most come first, so that few are needed; of these, relative ones that all
    # layers share, for which more properties hold.
    def order(case: Case) -> tuple[int, bool, bool]:
        card = POSITION.card(str(case.position))
        return -len(card.acts), not card.relative, card.per_layer

    for case in sorted(pairs(), key=order):
        seen = covered.setdefault((case.name, case.role), set())
        if case.name == "multi_head" or not set(case.acts) <= seen:
            yield case
        seen.update(case.acts)


def positioned_cases() -> Iterator[Case]:
    """Every entry, alone and with encodings."""
    yield from plain_cases()
    yield from representative_pairs()


def over(
    cases: Iterator[Case],
    *,
    every_entry: bool = False,
    kind: Callable[[Case], Any] = attrgetter("kind"),
) -> pytest.MarkDecorator:
    """Run a property on these cases.

    All but one of each kind are marked as exhaustive, unless the property is for every entry.
    """
    return pytest.mark.parametrize(
        "case",
        list(cases) if every_entry else mark_exhaustive((case, kind(case)) for case in cases),
        ids=str,
    )


def over_values(
    names: str, values: Iterable[Any], cases: Iterator[Case], *, every_entry: bool = False
) -> pytest.MarkDecorator:
    """Run a property on these cases with the first value as `over` does; with others, on fewer.

    Of their combinations, all but one of each family are marked as exhaustive. A property for every
    entry is that of one without an encoding: of others, one of each kind remains.
    """
    combinations = []
    for case, (index, value) in product(cases, enumerate(values)):
        first = case if every_entry and case.position is None else case.kind
        whole = value if isinstance(value, tuple) else (value,)
        combinations.append(((case, *whole), (index, case.family_kind[:2] if index else first)))
    return pytest.mark.parametrize(f"case,{names}", mark_exhaustive(combinations), ids=str)


def mark_exhaustive(cases: Iterable[tuple[Any, Any]]) -> list[Any]:
    """Mark those values, each with its kind, whose kind came before."""
    seen, params = set(), []
    for value, kind in cases:
        marks = [pytest.mark.exhaustive] if kind in seen else []
        seen.add(kind)
        params.append(pytest.param(*(value if isinstance(value, tuple) else [value]), marks=marks))
    return params


def backends(name: str) -> list[dict[str, str]]:
    """Options that choose each backend in turn, where an entry has a choice.

    But for kernels from float32 on a GPU, which `tests/parity/test_kernels.py` holds to the others.
    """
    if "backend" not in parameters(ATTENTION[name]):
        return [{}]
    return [{"backend": backend} for backend in ATTENTION[name].backends if backend != "fla"]
