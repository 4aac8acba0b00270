"""`attention-zoo list`: the zoo as a table, or as the README's Markdown."""

from collections.abc import Iterable
from pathlib import Path

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.commands.pairs import print_matrix, print_reasons
from attention_zoo.zoo import ATTENTION, POSITION, AttentionCard

OPTIONS = {
    "pairs=NAME": "Which attention takes which encoding: all, or one of them with the reasons.",
    "format=table": "table, or markdown for the tables of the README.",
    "output=FILE": "Write the Markdown between the marks in this file.",
}
FORMATS = ("table", "markdown")
ATTENTION_COLUMNS = (
    "attention",
    "paper",
    "roles",
    "masks",
    "positions",
    "time",
    "a token",
    "a sequence",
    "growth",
    "cache",
)
POSITION_COLUMNS = ("position", "paper", "acts on", "roles")
# Columns that a narrower terminal goes without, and the most characters of what they say.
WIDTH_TO_SHOW = {"paper": 116, "cache": 158}
LONG = {"paper": 26, "cache": 40}
# What the bytes are of: one layer of the base model, in float32.
DIM, HEADS, TOKENS, BYTES = 512, 8, 1024, 4
ROLE_LETTERS = {"causal": "C", "global": "G", "cross": "X"}
MASK_LETTERS = {"key_mask": "p", "segment_ids": "s", "window": "w"}
POSITION_LETTERS = {
    "positions": "P",
    "embeddings": "E",
    "heads": "H",
    "width": "W",
    "length": "L",
    "scores": "S",
    "content": "C",
    "values": "V",
}
LEGEND = (
    "Roles: C causal self-attention, G global self-attention, X cross-attention. "
    "Masks, beside that of the role: p padded keys, s packed sequences, w window. "
    "Positions act on: P positions, E embeddings, H queries and keys, W their width, L them by the "
    "length so far, S scores, C scores by content, V values. "
    "Time: how that of training grows with t tokens. "
    "What decoding keeps of each token and of a sequence, in bytes: of one layer in float32, with "
    f"width {DIM}, {HEADS} heads, {TOKENS:,} tokens, and the options of the mechanism's config."
)


def run(arguments: list[str]) -> None:
    options, _ = parse_arguments("list", arguments, OPTIONS)
    if name := options.get("pairs"):
        print_matrix() if name == "all" else print_reasons(name)
        return
    if (style := options.get("format", "table")) not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {style!r}.")
    tables = ((ATTENTION_COLUMNS, attention_rows()), (POSITION_COLUMNS, position_rows()))
    text = "\n\n".join([LEGEND, *(markdown(columns, rows) for columns, rows in tables)])
    if "output" in options:
        path = Path(options["output"])
        path.write_text(marked(path.read_text(), "zoo", text))
        return
    if style == "markdown":
        print(text)
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 158))  # A file or a pager has room for all.
    for columns, rows in tables:
        table = Table(box=None, padding=(0, 2 if console.width > 100 else 1, 0, 0))
        shown = [
            index
            for index, column in enumerate(columns)
            if console.width >= WIDTH_TO_SHOW.get(column, 0)
        ]
        for index in shown:
            name, cells = columns[index], [row[index] for row in rows]
            table.add_column(
                name,
                justify="right" if name.startswith("a ") else "left",
                min_width=None if name in LONG else max(map(len, (name, *cells))),
                max_width=LONG.get(name),
                no_wrap=True,
            )
        for row in rows:
            # The paper's number and section are on the card.
            short = [cell.split(", arXiv")[0].split(";")[0] for cell in row]
            table.add_row(*(short[index] for index in shown))
        console.print(table)
        console.print()
    console.print(LEGEND, highlight=False)
    console.print(f"\n{len(list(ATTENTION))} mechanisms, {len(list(POSITION))} encodings.", end=" ")
    console.print("attention-zoo show NAME prints a card.", highlight=False)


def attention_rows() -> list[tuple[str, ...]]:
    """The columns of `ATTENTION_COLUMNS` for each mechanism."""
    return [
        (
            card.name,
            card.paper,
            letters(card.roles, ROLE_LETTERS),
            letters(card.masks, MASK_LETTERS),
            letters(card.positions, POSITION_LETTERS),
            card.cost,
            *decoding(card),
        )
        for card in map(ATTENTION.card, ATTENTION)
    ]


def letters(words: Iterable[str], alphabet: dict[str, str]) -> str:
    """One for each word that has one."""
    return "".join(letter for word, letter in alphabet.items() if word in words) or "–"


def decoding(card: AttentionCard) -> tuple[str, str, str, str]:
    """Bytes kept of each token and of a sequence, how they grow, and what they are of."""
    if not card.cache:
        return "–", "–", "–", "no cached decoding"

    import torch

    from attention_zoo.factory import create_attention
    from attention_zoo.tasks.configuration.entry_configs import entry_options

    role = next(role for role in card.roles if role != "global")
    with torch.device("meta"):
        options = entry_options("attention", card.name, heads=HEADS)
        attention = create_attention(card.name, dim=DIM, role=role, **options)
    kept = {t: BYTES * attention.decode_state(t) for t in (1, TOKENS, 2**15, 2**16)}
    if kept[2**16] == kept[2**15]:
        growth = "constant" if kept[1] == kept[2**16] else "to a limit"
    else:
        growth = "linear" if kept[2**16] > 1.5 * kept[2**15] else "logarithmic"
    slope = (kept[2**16] - kept[2**15]) / 2**15 if growth == "linear" else 0
    return in_bytes(slope), in_bytes(kept[TOKENS]), growth, card.cache


def in_bytes(number: float) -> str:
    """4096 -> 4 KiB."""
    if number < 1024:
        return f"{number:.0f} B"
    return f"{number / 1024:.4g} KiB" if number < 2**20 else f"{number / 2**20:.3g} MiB"


def position_rows() -> list[tuple[str, ...]]:
    """Name, paper, where it acts, roles, of each encoding."""
    return [
        (
            card.name,
            card.paper,
            letters(card.acts, POSITION_LETTERS),
            letters(card.roles, ROLE_LETTERS),
        )
        for card in map(POSITION.card, POSITION)
    ]


def markdown(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; names in the first column as code."""
    columns = list(columns)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, *rest in rows:
        lines.append(f"| {' | '.join([f'`{name}`', *rest])} |")
    return "\n".join(lines)


def marked(document: str, name: str, text: str) -> str:
    """The document with the text between the two marks of a name."""
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = document.partition(f"{first}\n")
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise BadInput(f"The file has no {first} and {last} to write between.")
    return f"{before}{begin}{text}\n{end}{after}"
