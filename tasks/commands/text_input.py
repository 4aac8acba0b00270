"""The lines that a verb works on."""

import gzip
import sys
from pathlib import Path

from attention_zoo.errors import BadInput, UserError


def read_lines(given: list[str], path: str | None) -> list[str]:
    """The given lines, or those of a file, plain or gzipped, or of standard input.

    Raises:
        BadInput: a missing file, or invalid UTF-8. UserError: nothing given at all, at a terminal.
    """
    if given and path is not None:
        raise UserError(f"Lines come from the command line or from input={path}, not from both.")
    if given:
        return given
    if path is None and sys.stdin.isatty():
        raise UserError('No text given: "A line." behind the overrides, input=FILE, or < FILE.')
    name = "standard input" if path is None else path
    try:
        raw = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        if name.endswith(".gz"):
            raw = gzip.decompress(raw)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from None
    lines = raw.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{name}, line {number}: invalid UTF-8 at byte {error.start}. Convert it, for "
                f"instance with iconv -t UTF-8."
            ) from None
    return [line.decode() for line in lines]
