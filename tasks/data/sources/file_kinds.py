"""Tell by its first bytes what a file is that is no text, and what to do with it."""

import re
from typing import NamedTuple


class FileKind(NamedTuple):
    """A kind of file that holds no lines of text."""

    pattern: bytes  # a regular expression of the first bytes
    name: str
    remedy: str


EXTRACT = "save its text as a plain file"
UNPACK = "unpack it and name the files in it"
XML = rb"\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE[^>]*>\s*)?"
FILE_KINDS = (
    FileKind(rb"PK\x03\x04.*word/", "a Word document", EXTRACT),
    FileKind(rb"PK\x03\x04.*xl/", "a spreadsheet", "save it as CSV"),
    FileKind(rb"PK\x03\x04.{26}mimetype", "an OpenDocument file or an e-book", EXTRACT),
    FileKind(rb"PK\x03\x04.{26}[^/]+/data\.pkl", "a checkpoint of PyTorch", "name files of text"),
    FileKind(rb"PK(\x03\x04|\x05\x06)", "a zip archive", UNPACK),
    FileKind(rb".{257}ustar", "a tar archive", UNPACK),
    FileKind(rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    FileKind(rb"Rar!\x1a\x07", "a RAR archive", UNPACK),
    FileKind(rb"\x1f\x8b\x08|BZh[1-9]|\xfd7zXZ\0", "compressed twice", "unpack it once"),
    FileKind(rb"\x28\xb5\x2f\xfd", "compressed twice", "unpack it once"),
    FileKind(rb"\x04\x22\x4d\x18", "compressed by lz4", "unpack it: lz4 -d"),
    FileKind(rb"LZIP", "compressed by lzip", "unpack it: lzip -d"),
    FileKind(rb"\x1f\x9d", "compressed by compress", "unpack it: gzip -d"),
    FileKind(rb"%PDF-", "a PDF document", "extract its text, for example with pdftotext"),
    FileKind(rb"\{\\rtf", "an RTF document", EXTRACT),
    FileKind(rb"\xd0\xcf\x11\xe0", "a document of an older Office", EXTRACT),
    FileKind(rb"SQLite format 3\0", "an SQLite database", "export its text to a file"),
    FileKind(rb"\x80[\x02-\x05]", "a Python pickle", "write its text to a file of lines"),
    FileKind(rb"\x93NUMPY", "a NumPy array", "write its text to a file of lines"),
    FileKind(rb"\x89HDF", "an HDF5 file", "export its text to a file"),
    FileKind(rb"PAR1", "a parquet file", "name one with .parquet, and its columns"),
    FileKind(rb"ARROW1", "an Arrow file", "save it as parquet"),
    FileKind(
        rb"\xde\x12\x04\x95|\x95\x04\x12\xde",
        "a gettext catalogue",
        "data=gettext reads its folder",
    ),
    FileKind(
        XML + rb"<tmx\b", "a translation memory (TMX)", "data=parallel_files reads it with .tmx"
    ),
    FileKind(XML + rb"<xliff\b", "an XLIFF file", "data=parallel_files reads it with .xliff"),
    FileKind(
        rb"\s*(?i:<!doctype\s+html|<html[\s>])",
        "an HTML page",
        "check the address if it was downloaded, or extract its text",
    ),
    FileKind(
        rb"version https://git-lfs\.github\.com/",
        "a pointer of Git LFS to a file that is not here",
        "fetch it: git lfs pull",
    ),
    FileKind(rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP", "an image", "name a file of text"),
    FileKind(rb"RIFF|ID3|OggS|fLaC|.{4}ftyp", "audio or video", "name a file of text"),
    FileKind(rb"\x7fELF|MZ.{2}\0|\xcf\xfa\xed\xfe", "a program", "name a file of text"),
)


def kind_of_file(head: bytes) -> FileKind | None:
    """Return the kind of a file from its first bytes, or None where it may be text."""
    for kind in FILE_KINDS:
        if re.match(kind.pattern, head, re.DOTALL):
            return kind
    return None


def encoding_remedy(head: bytes, line: bytes) -> str:
    """Return what to do with a file whose `line` is not UTF-8; `head` is its first bytes."""
    sample = head + line
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", sample):
        return "it is not text; name a file of text"
    if any(is_utf8(line) and not line.isascii() for line in head.split(b"\n")):
        return "other lines are UTF-8: correct this one"
    if looks_western(sample):
        return "it looks like Western European text: convert it, iconv -f cp1252 -t utf-8"
    return (
        "find out its encoding, for example with file -i, and convert it: "
        "iconv -f ENCODING -t utf-8"
    )


def is_utf8(content: bytes) -> bool:
    """Check that bytes are valid UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def looks_western(sample: bytes) -> bool:
    """Check that bytes read as cp1252, in which most letters are ASCII, have accents in words only.

    Text in Cyrillic or Chinese has more bytes beyond ASCII; Polish or Turkish text read as cp1252
    has signs such as "³" between letters.
    """
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = [character for character in text if character.isalpha() or character > "\x7f"]
    beyond_ascii = sum(not letter.isascii() for letter in letters)
    signs_in_words = re.search(r"[a-zA-Z][^\W\d_a-zA-ZÀ-ÿŒœŠšŽžŸƒ][a-zA-Z]|[a-z][¡-¿][a-z]", text)
    return beyond_ascii <= len(letters) / 2 and not signs_in_words


def zero_byte_remedy(head: bytes) -> str:
    """Return what to do with a file that holds a byte 0; `head` is its first bytes.

    In UTF-16, every other byte of text in Latin script is 0.
    """
    for encoding, zeros, others in (
        ("utf-16le", head[1::2], head[::2]),
        ("utf-16be", head[::2], head[1::2]),
    ):
        if zeros.count(0) > len(zeros) / 2 and others.count(0) <= len(others) / 10:
            return (
                f"the text is {encoding.upper()} without a byte order mark; convert it: "
                f"iconv -f {encoding} -t utf-8"
            )
    return "a byte 0 stands in it, so it is not text; name a file of text"
