"""Tables, drawn on the console and as Markdown, CSV and HTML (by the macro in tables.html)."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from attention_zoo.errors import BadInput

WIDE = 100  # columns of a terminal that leaves room between the columns of a table


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: its header.
        kind: numbers are aligned to the right; prose quotes labels in backticks.
        max_width: the most characters of a cell on the console, where longer text is cut off.
    """

    title: str
    kind: Literal["text", "number", "prose"] = "text"
    max_width: int | None = None


class Cell(str):
    """The text of a cell, with the number that it is sorted by and its style.

    Args:
        text: what is shown.
        value: the number; None sorts last.
        style: good, bad, muted or strong.
    """

    value: float | None
    style: str

    def __new__(cls, text: str, value: float | None = None, style: str = "") -> "Cell":
        cell = super().__new__(cls, text)
        cell.value, cell.style = value, style
        return cell


@dataclass(frozen=True)
class Table:
    """Rows of texts under the titles of their columns; the first column names the rows."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    @property
    def titles(self) -> list[str]:
        return [column.title for column in self.columns]

    def select(self, titles: Collection[str]) -> "Table":
        """Return a table of some of the columns."""
        indices = [index for index, title in enumerate(self.titles) if title in titles]
        columns = [self.columns[index] for index in indices]
        return Table(self.title, columns, [[row[index] for index in indices] for row in self.rows])


def number_table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is text; the others are numbers."""
    first, *others = titles
    return Table(title, [Column(first), *(Column(each, "number") for each in others)], rows)


def print_table(console: Console, table: Table, *, show_header: bool = True) -> None:
    """Print a table; text that the console has no room for is folded."""
    drawn = RichTable(
        title=Text(table.title, style="bold") if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=show_header,
        show_edge=False,
        padding=(0, 1 if console.width > WIDE else 0, 0, 0),
    )
    for column in table.columns:
        drawn.add_column(
            Text(column.title),
            justify="right" if column.kind == "number" else "left",
            no_wrap=column.kind == "number" or column.max_width is not None,
            max_width=column.max_width,
            overflow="fold" if column.max_width is None else "ellipsis",
        )
    for row in table.rows:
        drawn.add_row(
            *(
                Text(
                    cell.replace("`", "") if column.kind == "prose" else str(cell),
                    style="dim" if getattr(cell, "style", "") == "muted" else "",
                )
                for column, cell in zip(table.columns, row, strict=True)
            )
        )
    console.print(drawn)


def markdown_table(table: Table, *, code_names: bool = False) -> str:
    """Return a table as Markdown; the names of the rows may be set as code."""
    rows = table.rows
    if code_names:
        rows = [[f"`{name}`", *cells] for name, *cells in rows]
    cells = [
        [escape_markdown(cell).replace("|", "\\|") for cell in row] for row in [table.titles, *rows]
    ]
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([head, f"|{'---|' * len(table.columns)}", *body])


def escape_markdown(text: str) -> str:
    """Return a line without HTML, which Markdown would let through."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def replace_section(document: str, name: str, text: str) -> str:
    """Return a document with a text between the two marks of a section's name.

    Raises:
        BadInput: the document does not have the marks.
    """
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
