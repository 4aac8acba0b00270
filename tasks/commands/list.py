"""`attention-zoo list`: print the zoo as tables, and which attention takes which encoding."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from attention_zoo.errors import BadInput, Unsupported, UserError
from attention_zoo.tasks.card_file import DIM, HEADS, LONG, TOKENS, decode_state
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.run_folder import first_sentence, refuse_unwritable
from attention_zoo.tasks.views.tables import Table, markdown_table, print_table, replace_section
from attention_zoo.zoo import (
    ATTENTION,
    POSITION,
    ROLES,
    SITES,
    AttentionCard,
    Role,
    check_pair,
    format_search_space,
    stored_entries,
    unknown_name_message,
)

OPTIONS = {
    "pairs=NAME": "Which attention takes which encoding: all, or one of them with the reasons.",
    "format=table": "table, or markdown for the tables of docs/zoo.md.",
    "output=FILE": "Write the Markdown between the marks in this file.",
}
FORMATS = ("table", "markdown")
FULL_WIDTH = 216  # characters of a line with all columns
# Narrower terminals lack these columns.
WIDTH_TO_SHOW = {"paper": 116, "cache": 158, "also called": 178, "tuned by compare": FULL_WIDTH}
MAX_WIDTH = {"paper": 26, "cache": 40, "also called": 18, "tuned by compare": 38}
BYTES = 4  # of a number in float32
ROLE_LETTERS = {"causal": "C", "global": "G", "cross": "X"}
MASK_LETTERS = {"key_mask": "p", "segment_ids": "s", "window": "w"}
SITE_LETTERS = dict(zip(SITES, "PEHWLSCV", strict=True))
LEGEND = (
    "- Also called: names elsewhere; the options take the name in the first column.\n"
    "- Roles: C causal self-attention, G global self-attention, X cross-attention.\n"
    "- Masks beside that of the role: p padded keys, s packed sequences, w window.\n"
    "- Positions act on: P positions; E embeddings; H queries and keys; W queries and keys, which "
    "become wider; L queries and keys, anew as the sequence grows; S scores, by positions alone; "
    "C scores, by content; V values.\n"
    "- Time: how the time of training grows with t tokens.\n"
    "- Cache, in decoding: the bytes that a token adds where growth is linear, the bytes of a "
    f"sequence of {TOKENS:,} tokens, how these grow with the sequence, and what they hold. In one "
    f"layer in float32, of width {DIM}, with {HEADS} heads and the options of the entry's config.\n"
    "- Tuned by compare: options besides the learning rate, with the values that are tried besides "
    "the default."
)
PAIRS_LEGEND = (
    "C: causal self-attention with the encoding. G: global self-attention with the encoding. "
    "X: cross-attention, which has no encoding, in a model with the encoding. "
    "attention-zoo list pairs=NAME prints why the others are refused."
)


def run(arguments: list[str]) -> None:
    """Print the tables, write them into a file, or print the pairs."""
    options, _ = parse_arguments("list", arguments, OPTIONS)
    if (style := options.get("format", "table")) not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {style!r}.")
    name, output = options.get("pairs"), options.get("output")
    if name and (other := options.keys() & {"format", "output"}):
        raise UserError(
            f"pairs={name} takes no {min(other)}: it is printed as a table. Leave it out."
        )
    if output and options.get("format") == "table":
        raise UserError(f"output={output} takes no format=table: it is Markdown. Leave it out.")
    if name:
        print_matrix() if name == "all" else print_refusals(name)
    elif output:
        path = Path(output)
        with refuse_unwritable(path, "FILE"):
            text = path.read_text(encoding="utf-8")
            path.write_text(replace_section(text, "zoo", zoo_markdown()), encoding="utf-8")
    elif style == "markdown":
        print(zoo_markdown())
    else:
        print_zoo()


def zoo_markdown() -> str:
    """Return the legend and the tables of the zoo."""
    tables = (markdown_table(x, code_names=True) for x in (attention_table(), position_table()))
    return "\n\n".join([LEGEND, *tables])


def print_zoo() -> None:
    """Print the tables with the columns that the terminal has room for, and the legend."""
    console = Console()
    if not console.is_terminal:  # A file or a pager has room for all.
        console.width = max(console.width, FULL_WIDTH)
    for table in (attention_table(), position_table()):
        shown = [i for i, x in enumerate(table.columns) if console.width >= WIDTH_TO_SHOW.get(x, 0)]
        # The paper's number and section are on the card.
        rows = [[row[i].split(", arXiv")[0].split(";")[0] for i in shown] for row in table.rows]
        columns, align = [table.columns[i] for i in shown], "".join(table.align[i] for i in shown)
        print_table(console, Table("", columns, rows, align), max_width=MAX_WIDTH)
    console.print(LEGEND, highlight=False)
    console.print(f"\n{len(list(ATTENTION))} mechanisms, {len(list(POSITION))} encodings.", end=" ")
    console.print("attention-zoo show NAME prints a card.", highlight=False)


def attention_table() -> Table:
    """Return a table of the attention mechanisms."""
    columns = ["attention", "also called", "paper", "roles", "masks", "positions", "time"]
    columns += ["a token", "a sequence", "growth", "cache", "tuned by compare"]
    rows = [
        (
            card.name,
            ", ".join(card.also_called),
            card.paper,
            letters(card.roles, ROLE_LETTERS),
            letters(card.masks, MASK_LETTERS),
            letters(card.positions, SITE_LETTERS),
            card.cost,
            *cache_cells(card),
            format_search_space(card.search_space),
        )
        for card in map(ATTENTION.card, ATTENTION)
    ]
    return Table("Attention", columns, rows, "lllllllrrlll")


def position_table() -> Table:
    """Return a table of the positional encodings."""
    rows = [
        (
            card.name,
            ", ".join(card.also_called),
            card.paper,
            letters(card.acts, SITE_LETTERS),
            letters(card.roles, ROLE_LETTERS),
        )
        for card in map(POSITION.card, POSITION)
    ]
    columns = ["position", "also called", "paper", "acts on", "roles"]
    return Table("Position", columns, rows, "lllll")


def letters(words: Iterable[str], alphabet: Mapping[Any, str]) -> str:
    """Return the letters that stand for the words."""
    return "".join(letter for word, letter in alphabet.items() if word in words) or "–"


def cache_cells(card: AttentionCard) -> tuple[str, str, str, str]:
    """Return the bytes cached for a token and for a sequence, how they grow, and what is cached."""
    if not card.cache:
        return "–", "–", "–", "no cached decoding"
    stored = (stored_entries() or {}).get("attention", {}).get(card.name)
    numbers = stored.decode_state if stored else decode_state(card)
    sizes = {tokens: BYTES * number for tokens, number in numbers.items()}
    if sizes[2 * LONG] == sizes[LONG]:
        growth = "constant" if sizes[1] == sizes[LONG] else "to a limit"
    else:
        growth = "linear" if sizes[2 * LONG] > 1.5 * sizes[LONG] else "logarithmic"
    slope = (sizes[2 * LONG] - sizes[LONG]) / LONG if growth == "linear" else 0
    return format_bytes(slope), format_bytes(sizes[TOKENS]), growth, card.cache


def format_bytes(number: float) -> str:
    """Return 4 KiB for 4096."""
    if number < 1024:
        return f"{number:.0f} B"
    return f"{number / 1024:.4g} KiB" if number < 2**20 else f"{number / 2**20:.3g} MiB"


class Pair(NamedTuple):
    """An attention in a role, an encoding, and why a config of them is refused, if it is."""

    attention: str
    position: str
    role: Role
    refusal: str | None


def list_pairs() -> Iterator[Pair]:
    """Yield every attention × encoding × role."""
    for attention, position, role in product(ATTENTION, POSITION, ROLES):
        card, refusal = POSITION.card(position), None
        try:
            check_pair(ATTENTION.card(attention), role, None if role == "cross" else card)
            if role == "cross":
                # Such a model has an encoder too, whose self-attention takes the encoding.
                check_pair(ATTENTION.card("multi_head"), "global", card)
        except Unsupported as error:
            refusal = str(error)
        yield Pair(attention, position, role, refusal)


def print_matrix() -> None:
    """Print the roles that are valid, with a row for each attention, a column for each encoding."""
    pairs = list(list_pairs())
    cells = dict.fromkeys(product(ATTENTION, POSITION), "")
    for pair in pairs:
        if pair.refusal is None:
            cells[pair.attention, pair.position] += ROLE_LETTERS[pair.role]
    rows = [(name, *(cells[name, other] or "·" for other in POSITION)) for name in ATTENTION]
    # Their names are wider than the columns.
    numbers = [str(number) for number in range(1, len(list(POSITION)) + 1)]
    names = ", ".join(f"{number} {name}" for number, name in zip(numbers, POSITION, strict=True))
    columns = ["", *numbers]
    print_pairs(
        pairs, Table("", columns, rows, "l" * len(columns)), PAIRS_LEGEND, f"Columns: {names}."
    )


def print_refusals(name: str) -> None:
    """Print each pair of one attention or encoding: valid, or why it is refused."""
    if name not in (*ATTENTION, *POSITION):
        raise BadInput(unknown_name_message("attention or position", name, [*ATTENTION, *POSITION]))
    pairs = [pair for pair in list_pairs() if name in pair[:2]]
    rows = [
        (
            pair.position if name == pair.attention else pair.attention,
            pair.role,
            # The sentences after the first list the valid choices.
            f"refused: {first_sentence(pair.refusal).rstrip('.')}" if pair.refusal else "valid",
        )
        for pair in pairs
    ]
    print_pairs(pairs, Table(f"Pairs of {name}", ["with", "role", "result"], rows, "lll"))


def print_pairs(pairs: Sequence[Pair], table: Table, *legend: str) -> None:
    """Print a table of pairs, its legend, and how many are valid; the terminal wraps long lines."""
    print_table(Console(width=1000), table)
    valid = sum(pair.refusal is None for pair in pairs)
    count = f"{len(pairs)} pairs with roles: {valid} are valid, {len(pairs) - valid} are refused."
    for line in (*legend, count):
        Console().print(line, highlight=False)
