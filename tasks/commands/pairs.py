"""`attention-zoo list pairs=all`: which attention takes which encoding, and why others do not."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from rich.console import Console

from attention_zoo.errors import BadInput, Unsupported
from attention_zoo.tasks.views.tables import Table, print_table
from attention_zoo.zoo import ATTENTION, POSITION, ROLES, Role, check_pair, unknown_name_message

LETTERS = {"causal": "C", "global": "G", "cross": "X"}
LEGEND = (
    "C: causal self-attention with the encoding. G: global self-attention with the encoding. "
    "X: cross-attention, which has no encoding, in a model with the encoding. "
    "attention-zoo list pairs=NAME prints why the others are refused."
)
WIDTH = 1000  # of a line in characters: the terminal wraps longer lines


class Pair(NamedTuple):
    """An attention in a role, an encoding, and why the pair is refused, if it is."""

    attention: str
    position: str
    role: Role
    refusal: str | None


def list_pairs() -> Iterator[Pair]:
    """Yield every attention × encoding × role."""
    for attention, position, role in product(ATTENTION, POSITION, ROLES):
        yield Pair(attention, position, role, find_refusal(attention, position, role))


def find_refusal(attention: str, position: str, role: Role) -> str | None:
    """Return the error with which a config of the pair is refused; None if it is valid."""
    card = POSITION.card(position)
    try:
        check_pair(ATTENTION.card(attention), role, None if role == "cross" else card)
        if role == "cross":
            # Such a model has an encoder too, whose self-attention takes the encoding.
            check_pair(ATTENTION.card("multi_head"), "global", card)
    except Unsupported as refusal:
        return str(refusal)
    return None


def print_matrix() -> None:
    """Print the roles that are valid, with a row for each attention, a column for each encoding."""
    pairs = list(list_pairs())
    valid = {(p.attention, p.position, p.role) for p in pairs if p.refusal is None}
    rows = [
        (
            attention,
            *(
                "".join(LETTERS[role] for role in ROLES if (attention, position, role) in valid)
                or "·"
                for position in POSITION
            ),
        )
        for attention in ATTENTION
    ]
    # The names of encodings are written downwards.
    height = max(map(len, POSITION))
    columns = ["", *("\n".join(position.rjust(height)) for position in POSITION)]
    print_table(Console(width=WIDTH), Table("", columns, rows, "l" * len(columns)))
    Console().print(f"\n{LEGEND}", highlight=False)
    print_count(pairs)


def print_refusals(name: str) -> None:
    """Print each pair of one attention or encoding: whether it is valid, or why it is refused."""
    if name not in (*ATTENTION, *POSITION):
        raise BadInput(unknown_name_message("attention or position", name, [*ATTENTION, *POSITION]))
    pairs = [pair for pair in list_pairs() if name in (pair.attention, pair.position)]
    rows = [
        (
            pair.position if name == pair.attention else pair.attention,
            pair.role,
            # The sentences after the first list the valid choices.
            f"refused: {pair.refusal.partition('. ')[0].rstrip('.')}" if pair.refusal else "valid",
        )
        for pair in pairs
    ]
    table = Table(f"Pairs of {name}", ["with", "role", "result"], rows, "lll")
    print_table(Console(width=WIDTH), table)
    print_count(pairs)


def print_count(pairs: Sequence[Pair]) -> None:
    """Print how many pairs are valid."""
    valid = sum(pair.refusal is None for pair in pairs)
    count = f"{len(pairs)} pairs with roles: {valid} are valid, {len(pairs) - valid} are refused."
    Console().print(f"\n{count}", highlight=False)
