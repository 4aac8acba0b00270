"""`attention-zoo list pairs=all`: which attention takes which encoding, and why not."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from attention_zoo.errors import BadInput, Unsupported
from attention_zoo.zoo import ATTENTION, POSITION, ROLES, Role, check_pair, unknown_name_message

LETTERS = {"causal": "C", "global": "G", "cross": "X"}
NOTE = (
    "C causal, G global self-attention with the encoding; X cross-attention, which has none of its "
    "own, in a model that has it. attention-zoo list pairs=NAME says why the others are refused."
)


class Pair(NamedTuple):
    """An attention in a role, in a model with an encoding; why it is refused, if it is."""

    attention: str
    position: str
    role: Role
    refusal: str | None


def pairs() -> Iterator[Pair]:
    """Every attention × encoding × role."""
    for attention, position, role in product(ATTENTION, POSITION, ROLES):
        yield Pair(attention, position, role, refusal(attention, position, role))


def refusal(attention: str, position: str, role: Role) -> str | None:
    """As it would be refused when a config is composed."""
    card = POSITION.card(position)
    try:
        check_pair(ATTENTION.card(attention), role, None if role == "cross" else card)
        if role == "cross":
            # A model that has it has an encoder beside it, of plain attention here.
            check_pair(ATTENTION.card("multi_head"), "global", card)
    except Unsupported as reason:
        return str(reason)
    return None


def print_matrix() -> None:
    """A line for each attention, a column for each encoding, the roles that run in the cells."""
    from rich.console import Console

    console, found = Console(), list(pairs())
    runs = {(p.attention, p.position, p.role) for p in found if p.refusal is None}
    width = max(map(len, ATTENTION)) + 2
    # Names stand upright above their columns.
    tall = max(map(len, POSITION))
    for row in range(tall):
        letters = (name.rjust(tall)[row] for name in POSITION)
        console.print(" " * width + "".join(f"{letter:<4}" for letter in letters), soft_wrap=True)
    for attention in ATTENTION:
        cells = (
            "".join(LETTERS[role] for role in ROLES if (attention, position, role) in runs) or "·"
            for position in POSITION
        )
        line = f"{attention:<{width}}" + "".join(f"{cell:<4}" for cell in cells)
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"\n{NOTE}", highlight=False)
    console.print(f"{len(found)} pairs with roles: {counted(found)}.", highlight=False)


def print_reasons(name: str) -> None:
    """For one attention or one encoding: each pair, whether it runs, or why it is refused."""
    from rich.console import Console

    if name not in (*ATTENTION, *POSITION):
        raise BadInput(unknown_name_message("attention or position", name, [*ATTENTION, *POSITION]))
    console = Console()
    found = [pair for pair in pairs() if name in (pair.attention, pair.position)]
    for pair in found:
        other = pair.position if name == pair.attention else pair.attention
        # The sentences behind the reason list all that could be chosen instead.
        said = "runs" if pair.refusal is None else f"refused: {first_sentence(pair.refusal)}"
        console.print(f"{other:<22}{pair.role:<8}{said}", soft_wrap=True, highlight=False)
    console.print(f"\n{len(found)} pairs with roles: {counted(found)}.", highlight=False)


def counted(found: list[Pair]) -> str:
    run = sum(pair.refusal is None for pair in found)
    return f"{run} run, {len(found) - run} are refused"


def first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")
