"""Columns of text from tables: tab-separated, CSV, JSON lines and parquet."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from babel.localedata import exists as locale_exists

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.sources.text_reader import read_chunks, read_lines

Columns = Sequence[str | int]
SUFFIXES = {
    ".tsv": "tsv",
    ".tab": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
OPTION = {1: "data.source.column", 2: "data.source.columns"}  # by the number of columns
COMPRESSED = re.compile(r"\.(gz|xz|bz2|zst)$")


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, without that of its compression, in small letters."""
    return Path(COMPRESSED.sub("", name.lower())).suffix


def table_format(path: Path) -> str | None:
    """Return the format of a table by its name, else by its first line; None for other files."""
    if suffix_of(path.name) in SUFFIXES:
        return SUFFIXES[suffix_of(path.name)]
    first = next(read_lines(path), "")
    if first.startswith("{"):
        return "jsonl"
    return "tsv" if "\t" in first else None


def read_columns(path: Path, columns: Columns | None, count: int) -> Iterator[tuple[str, ...]]:
    """Yield `count` columns of each row of a table.

    Args:
        path: of the table.
        columns: names of the first row, or of fields, where "translation.en" is a field of a field;
            or numbers, from 1, of a table without names. None takes all columns of a table that
            has `count` of them and no names.
        count: the number of columns.
    """
    if columns is not None and (
        isinstance(columns, str)
        or len({*columns}) != count
        or len(columns) != count
        or len({*map(type, columns)}) != 1
    ):
        raise UserError(
            f"data.source.columns must be {count} different names or numbers, such as [en,pt] or "
            f"[1,2], got {columns if isinstance(columns, str) else list(columns)}."
        )
    form = table_format(path)
    if form in ("tsv", "csv"):
        rows = split_tabs(path) if form == "tsv" else parse_csv(path)
        yield from table_columns(path, rows, columns, count)
        return
    records = parquet_records(path, columns) if form == "parquet" else json_records(path)
    for number, record in enumerate(records, 1):
        if columns is None or isinstance(columns[0], int):
            raise UserError(
                f"{path} has fields with names: {', '.join(field_names(record))}; name {count} of "
                f"them in {OPTION[count]}."
            )
        yield tuple(select_field(path, number, record, str(name)) for name in columns)


def table_columns(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Columns | None, count: int
) -> Iterator[tuple[str, ...]]:
    """Yield the columns of rows that all have as many cells as the first one."""
    number, first = next(rows, (0, []))
    if columns is None:
        if len(first) != count or all(map(is_column_name, first)):
            cells = ", ".join(repr(cell[:30]) for cell in first[:8])
            raise UserError(
                f"{path} has the first row {cells}; choose columns in {OPTION[count]}, by name "
                f"if these are names, such as {sample_columns(first, count)}, else by number, such "
                f"as {list(range(1, count + 1))}."
            )
        columns = range(1, count + 1)
    if isinstance(columns[0], str):
        for name in columns:
            if first.count(str(name)) != 1:
                raise UserError(
                    f"{path} has {first.count(str(name)) or 'no'} column {name!r}; its first row "
                    f"names {', '.join(first[:20])}. A table without names needs numbers, from 1."
                )
        indices = [first.index(str(name)) for name in columns]
    else:
        indices = [int(column) - 1 for column in columns]
        if not all(0 <= index < len(first) for index in indices):
            raise UserError(
                f"{OPTION[count]} counts from 1, and {path} has {len(first)} columns, got "
                f"{list(columns)}."
            )
        yield tuple(first[index] for index in indices)
    for number, row in rows:
        if len(row) != len(first):
            raise BadInput(
                f"{path}, line {number}: {len(row)} columns, and the first row has {len(first)}; "
                "correct the line."
            )
        yield tuple(row[index] for index in indices)


def is_column_name(cell: str) -> bool:
    """Check that a cell is the code of a language, or another usual name of a column of text."""
    return cell.lower() in ("source", "target", "src", "tgt") or locale_exists(
        cell.replace("-", "_")
    )


def sample_columns(first: list[str], count: int) -> str:
    """Return the first names of a row as a list of the command line."""
    return f"[{','.join(first[:count])}]"


def split_tabs(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each line that is not empty.

    Quotes are part of the text, as in the corpora of OPUS and Tatoeba.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line:
            yield number, line.split("\t")


def parse_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line number and the cells of each row that is not empty."""
    first = next(read_chunks(path), "")
    delimiter = max(",;\t", key=first.count)  # spreadsheets write ";" in many languages
    reader = csv.reader(read_chunks(path), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}; correct the row.") from None


def json_records(path: Path) -> Iterator[Any]:
    """Yield the record of each line that is not empty."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(
                f"{path}, line {number} is not JSON ({error}); write one record a line, for "
                "example with jq -c '.[]'."
            ) from None
        if not isinstance(record, dict):
            raise BadInput(
                f"{path}, line {number} holds no record with fields; write one record a line, for "
                "example with jq -c '.[]'."
            )
        yield record


def parquet_records(path: Path, columns: Columns | None) -> Iterator[Any]:
    """Yield the rows of a parquet file; other columns than those to read may be left out."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadInput(f"{path} needs a package: pip install 'attention-zoo[files]'.") from None
    try:
        with parquet.ParquetFile(path) as file:
            chosen = {part for name in columns or () for part in (name, str(name).split(".")[0])}
            names = [name for name in file.schema_arrow.names if name in chosen]
            for batch in file.iter_batches(columns=names or None):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path} cannot be read ({reason}); fetch it again.") from error


def select_field(path: Path, number: int, record: dict[str, Any], name: str) -> str:
    """Return the text of a field, or of a field of a field; a null is empty."""
    value: Any = record
    if name in record:
        value = record[name]
    else:
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(
                    f"{path}, record {number} has no field {name!r}; it has "
                    f"{', '.join(field_names(record))}."
                )
            value = value[part]
    if not isinstance(value, str | None):
        raise BadInput(
            f"{path}, record {number}: field {name!r} is {type(value).__name__}, not text; name a "
            "field of text."
        )
    return value or ""


def field_names(record: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield the names of a record's fields, and of the fields in them."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def one_line(text: str) -> str:
    """Return a text on one line."""
    return re.sub(r"\s*\n\s*", " ", text).strip() if "\n" in text else text
