r"""The one reader of lines, for training and for the commands.

Content tells how a file is compressed and encoded, so standard input and misnamed files are read
as well. Lines end with "\n" only: other line separators of Unicode are part of real text, and
splitting there would misalign the two sides of a corpus. A "\r" before "\n" is removed.
"""

import bz2
import gzip
import html
import io
import lzma
import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from attention_zoo.errors import BadInput
from attention_zoo.tasks.data.sources.file_kinds import (
    encoding_remedy,
    kind_of_file,
    zero_byte_remedy,
)


def import_zstd() -> Any:
    """Return the module that reads zstd, or None; Python has one from 3.14 on."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return import_module(name)
    return None


zstd = import_zstd()
HEAD = 1 << 16  # bytes that are looked at to tell what a file is
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError) + ((zstd.ZstdError,) if zstd else ())
DECOMPRESSORS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (rb"\x1f\x8b\x08", gzip.open),
    (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", bz2.open),
    (rb"\xfd7zXZ\0|\x5d\0\0", lzma.open),
)
ZSTD = b"\x28\xb5\x2f\xfd"
ENCODINGS = {
    BOM_UTF32_LE: "utf-32",  # before the mark of UTF-16, with which it begins
    BOM_UTF32_BE: "utf-32",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}
LONE_CARRIAGE_RETURN = re.compile(r"\r(?=[^\r\n])")
SGML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!doctype[^>]*>\s*)?<(srcset|refset|tstset|mteval)\b", re.I
)
SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg\s*>", re.I | re.DOTALL)


def read_text(path: Path) -> str:
    """Return the text of a file."""
    return "".join(read_chunks(path))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, without their ends."""
    for line in read_chunks(path):
        yield line.removesuffix("\n")


def read_chunks(path: Path) -> Iterator[str]:
    r"""Yield the lines of a file, each with its "\n"."""
    try:
        with path.open("rb", buffering=HEAD) as file:
            yield from decode_lines(file, str(path))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}).") from error


def decode_lines(file: IO[bytes], name: str) -> Iterator[str]:
    r"""Yield the lines of an open file, each with its "\n"; of an SGML file, its segments.

    Only a line at a time is held. Raise BadInput for what is damaged or no text.
    """
    try:
        stream = decompress(file, name)
        head = stream.peek(HEAD).removeprefix(BOM_UTF8)
        kind = kind_of_file(head)
        if kind is not None:
            raise BadInput(f"{name} is {kind.name}, not lines of text; {kind.remedy}.")
        lines = normalize_line_ends(decode(stream, name), name)
        yield from sgml_segments(lines, name) if SGML.match(head) else lines
    except READ_ERRORS as error:
        raise BadInput(f"{name} cannot be read ({error}); fetch or unpack it again.") from error


def decompress(file: IO[bytes], name: str) -> Any:
    """Return a stream of a file's content, which may be compressed."""
    stream: Any = file if hasattr(file, "peek") else io.BufferedReader(file)
    head = stream.peek(HEAD)
    if head.startswith(ZSTD):
        if zstd is None:
            raise BadInput(
                f"{name} is compressed by zstd, which needs a package: "
                "pip install 'attention-zoo[files]'; or unpack it: zstd -d."
            )
        return zstd.open(stream)
    for pattern, open_compressed in DECOMPRESSORS:
        if re.match(pattern, head):
            return open_compressed(stream)
    return stream


def decode(stream: Any, name: str) -> Iterator[str]:
    """Yield the decoded lines of a stream, without byte order marks."""
    head = stream.peek(HEAD)[:HEAD]
    for mark, encoding in ENCODINGS.items():
        if head.startswith(mark):
            text = io.TextIOWrapper(stream, encoding=encoding, newline="\n")
            number = 0
            try:
                for number, line in enumerate(text, 1):  # noqa: B007
                    yield line
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{name}, after line {number}: the bytes are not valid {encoding.upper()} "
                    f"({error.reason}); fetch or write the file again."
                ) from None
            finally:
                text.detach()  # else it closes the stream, which has another owner
            return
    for number, raw in enumerate(stream, 1):
        if b"\0" in raw:
            raise BadInput(f"{name}, line {number}: {zero_byte_remedy(head)}.")
        try:
            if line := (raw.removeprefix(BOM_UTF8) if number == 1 else raw).decode():
                yield line
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise BadInput(
                f"{name}, line {number}: byte 0x{byte:02x} is not valid UTF-8; "
                f"{encoding_remedy(head, raw)}."
            ) from None


def normalize_line_ends(lines: Iterable[str], name: str) -> Iterator[str]:
    r"""Yield lines that end with "\n". Raise BadInput if most end with "\r" alone."""
    returns = 0
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            returns += len(LONE_CARRIAGE_RETURN.findall(line))
            if returns > number - (not line.endswith("\n")):
                raise BadInput(
                    f"{name} ends its lines with a carriage return alone, as old Macs did; convert "
                    r"it: tr '\r' '\n' < FILE > NEW."
                )
            content = line.removesuffix("\n")
            line = content.rstrip("\r") + line[len(content) :]
        yield line


def sgml_segments(lines: Iterable[str], name: str) -> Iterator[str]:
    """Yield the segments of a file of the WMT and NIST test sets, one a line, without markup."""
    text = "".join(lines)
    segments = SEGMENT.findall(text)
    if len(segments) != len(re.findall(r"<seg\b", text, re.I)):
        raise BadInput(f"{name}: not every <seg> has its </seg>; fetch the file again.")
    for segment in segments:
        yield re.sub(r"[ \t\r\n]+", " ", html.unescape(segment)).strip() + "\n"
