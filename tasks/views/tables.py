"""Tables, drawn on the console and as Markdown, CSV and HTML (by the macro in tables.html)."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from attention_zoo.errors import BadInput

WIDE = 100  # characters of a console that leaves room between the columns of a table
KINDS = {"l": "text", "r": "number", "p": "prose"}


class Cell(str):
    """The text of a cell, with the number that it is sorted by, if it has one, and its style."""

    value: float | None
    style: str  # good, bad, muted or strong

    def __new__(cls, text: str, value: float | None = None, style: str = "") -> "Cell":
        cell = super().__new__(cls, text)
        cell.value, cell.style = value, style
        return cell


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    `align` has a letter for each column, as in LaTeX: l for text, r for numbers, p for prose that
    quotes labels in backticks. The default is l for the first and r for the others.
    """

    title: str
    columns: Sequence[str]  # their titles
    rows: Sequence[Sequence[str]]  # some of the texts are a `Cell`
    align: str = ""

    @property
    def kinds(self) -> list[str]:
        """Return text, number or prose for each column."""
        return [KINDS[x] for x in self.align or f"l{'r' * (len(self.columns) - 1)}"]


def print_table(
    console: Console,
    table: Table,
    *,
    show_header: bool = True,
    max_width: Mapping[str, int] | None = None,
) -> None:
    """Print a table and an empty line; long text is folded, or cut off at its column's width."""
    drawn = RichTable(
        title=Text(table.title, style="bold") if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=show_header,
        show_edge=False,
        padding=(0, 1 if console.width > WIDE else 0, 0, 0),
    )
    for title, kind in zip(table.columns, table.kinds, strict=True):
        width = (max_width or {}).get(title)
        drawn.add_column(
            Text(title),
            justify="right" if kind == "number" else "left",
            no_wrap=kind == "number" or width is not None,
            max_width=width,
            overflow="ellipsis" if width else "fold",
        )
    for row in table.rows:
        cells = []
        for cell, kind in zip(row, table.kinds, strict=True):
            text = cell.replace("`", "") if kind == "prose" else str(cell)
            cells.append(Text(text, style="dim" if getattr(cell, "style", "") == "muted" else ""))
        drawn.add_row(*cells)
    console.print(drawn)
    console.print()


def markdown_table(table: Table, *, code_names: bool = False) -> str:
    """Return a table as Markdown; the names of the rows may be set as code."""
    code = "`" if code_names else ""
    rows = [table.columns, *([f"{code}{name}{code}", *cells] for name, *cells in table.rows)]
    texts = [[escape_markdown(cell).replace("|", "\\|") for cell in row] for row in rows]
    head, *body = (f"| {' | '.join(row)} |" for row in texts)
    return "\n".join([head, f"|{'---|' * len(table.columns)}", *body])


def escape_markdown(text: str) -> str:
    """Return a line without HTML, which Markdown would let through."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def replace_section(document: str, name: str, text: str) -> str:
    """Return a document with a text between the two marks of a section's name."""
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, remainder = document.partition(f"{first}\n")
    _, end, after = remainder.partition(last)
    if not begin or not end:
        raise BadInput(f"The file must have the marks {first} and {last} to write between.")
    return f"{before}{begin}{text}\n{end}{after}"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with a column for every key that any row has."""
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
