"""Read the lines that a command works on."""

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

from attention_zoo.errors import BadInput, UserError


def read_lines(arguments: Sequence[str], path: str | None) -> list[str]:
    """Return the lines of the command line, else of a file, plain or gzipped, else of stdin."""
    if arguments and path is not None:
        raise UserError(f"Lines come from the command line or from input={path}, not from both.")
    if arguments:
        return [*arguments]
    if path is None and sys.stdin.isatty():
        raise UserError('No text given: "A line." after the options, input=FILE, or < FILE.')
    name = "standard input" if path is None else path
    try:
        raw = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        if name.endswith(".gz"):
            raw = gzip.decompress(raw)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        return raw.removesuffix(b"\n").decode().split("\n")
    except UnicodeDecodeError as error:
        before = raw[: error.start].split(b"\n")
        raise BadInput(
            f"{name}, line {len(before)}: invalid UTF-8 at byte {len(before[-1])}. Convert it, for "
            f"instance with iconv -t UTF-8."
        ) from None
