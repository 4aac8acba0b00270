"""Read the lines that a command works on."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.sources import text_reader
from attention_zoo.tasks.data.sources.files import find_file


def read_lines(arguments: Sequence[str], path: str | None) -> Iterator[str]:
    """Return the lines of the command line, else of a file, else of standard input, one by one."""
    if arguments and path is not None:
        raise UserError(f"Lines come from the command line or from input={path}, not from both.")
    if arguments:
        return iter(arguments)
    if path in ("", "-"):
        raise UserError(f"input must name a file, got {path!r}; leave it out for standard input.")
    if path is not None:
        file = Path(path)
        # A pipe is no regular file, and is read once here.
        return text_reader.read_lines(file if file.is_fifo() else find_file(file, "check input"))
    if sys.stdin.isatty():
        raise UserError('No text given: "A line." after the options, input=FILE, or < FILE.')
    lines = text_reader.decode_lines(sys.stdin.buffer, "standard input")
    return (line.removesuffix("\n") for line in lines)
