import bz2
import gzip
import io
import lzma
import os
import pickle
import sqlite3
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from backports import zstd

from attention_zoo.errors import BadInput
from attention_zoo.tasks.commands import text_input
from attention_zoo.tasks.data.sources import text_reader
from attention_zoo.tasks.data.sources.text_reader import decode_lines, read_lines, read_text

# Without the time, which would stand in the names of tests: parallel processes must agree on them.
gzipped = partial(gzip.compress, mtime=0)
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip of two members": lambda content: gzip.compress(content[:5]) + gzip.compress(content[5:]),
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    "bz2": bz2.compress,
    "zstd": zstd.compress,
    "zstd of two frames": lambda content: zstd.compress(content[:5]) + zstd.compress(content[5:]),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
TEXT = "três\n\nü\u0085b c\u2028d\x0be\x0cf 日\nlast"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_one_reader_reads_all_in_files_and_standard_input(
    compress, encoding: str, line_end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = compress(TEXT.replace("\n", line_end).encode(encoding))
    path = tmp_path / "misnamed.gz"
    path.write_bytes(content)
    assert read_text(path) == TEXT
    assert list(text_input.read_lines([], str(path))) == TEXT.split("\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert list(text_input.read_lines([], None)) == TEXT.split("\n")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\xef\xbb\xbf", []),
        (b"a", ["a"]),
        (b"three hours\r\n", ["three hours"]),
        (b"three hours\r", ["three hours"]),
        (b"a\rb\nc\nd\n", ["a\rb", "c", "d"]),
        (gzipped(b""), []),
        ("a\r\nb\r\n".encode("utf-16-be").join([b"\xfe\xff", b""]), ["a", "b"]),
    ],
)
def test_ends_of_lines_and_files(content: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert list(read_lines(tmp_path / "a")) == lines


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "text\n")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return file.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table a (b)")
    return connection.serialize()


NO_TEXT = {
    "a zip archive, .*unpack": zipped("a.txt"),
    "a Word document": zipped("[Content_Types].xml", "word/document.xml"),
    "a spreadsheet, .*CSV": zipped("[Content_Types].xml", "xl/workbook.xml"),
    "OpenDocument": zipped("mimetype", "content.xml"),
    "a checkpoint of PyTorch": zipped("archive/data.pkl"),
    "a tar archive, .*unpack": tarred(),
    "a tar archive": gzipped(tarred()),
    "compressed twice": gzipped(gzipped(b"a\n")),
    "a PDF document, .*pdftotext": b"%PDF-1.7\n%\xe2\xe3\n",
    "an SQLite database": database(),
    "a Python pickle": pickle.dumps([("a", "b")]),
    "an HTML page": b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>",
    "a parquet file, .*columns": b"PAR1\x15\x04",
    "a gettext catalogue, .*data=gettext": b"\xde\x12\x04\x95\0\0\0\0",
    "Git LFS .*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "an image": b"\x89PNG\r\n\x1a\n",
    r"a translation memory .*parallel_files": b'<?xml version="1.0"?>\n<tmx version="1.4">',
    "an XLIFF file": b'<xliff version="1.2">',
    "carriage return alone.*tr ": b"one\rtwo\rthree",
    "carriage return alone": b"one\rtwo\rthree\rfour\n",
    "line 1: .*UTF-16LE without a byte order mark.*-f utf-16le": "one\ntwo\n".encode("utf-16-le"),
    "UTF-16BE without": "one\ntwo\n".encode("utf-16-be"),
    "line 2: a byte 0 .*not text": b"one\nt\0wo\n",
    "it is not text": b"\x01\x02\xff\xfe\x80\n",
    "line 3: byte 0xea .*Western .*iconv -f cp1252": "um\ndois\ntrês\n".encode("latin1"),
    "byte 0x92 .*Western": b"it\x92s a line of text\n",
    r"find out its encoding, .*iconv -f ENCODING": "русский текст\n".encode("cp1251"),
    "find out its encoding": "日本語のテキスト\n".encode("shift-jis"),
    "find out its +encoding": "zażółć gęślą jaźń, mała łódź\n".encode("cp1250"),
    "line 2: .*other lines are UTF-8: correct this one": "três\n".encode() + b"tr\xeas\n",
    "not valid UTF-16": "ab".encode("utf-16") + b"\x00",
    "cannot be read .*again": gzipped(b"four\n" * 99)[:-6],
    "cannot be read .* again": bz2.compress(b"four\n" * 99)[:-6],
    "cannot be read .*unpack": lzma.compress(b"four\n" * 99)[:-6],
    "cannot be read .*unpack it again": zstd.compress(b"four\n" * 99)[:-6],
    "not every <seg>": b"<srcset>\n<seg id=1>one\n",
}


@pytest.mark.parametrize(("message", "content"), NO_TEXT.items())
def test_what_is_no_text_is_named(message: str, content: bytes) -> None:
    with pytest.raises(BadInput, match=message) as error:
        list(decode_lines(io.BytesIO(content), "a.en"))
    assert "\n" not in str(error.value) and str(error.value).startswith("a.en")
    assert ("cp1252" in str(error.value)) == ("Western" in message)


def test_zstd_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reader, "zstd", None)
    with pytest.raises(BadInput, match=r"zstd, .*pip install 'attention-zoo\[files\]'"):
        list(decode_lines(io.BytesIO(zstd.compress(b"a\n")), "a.zst"))


def test_lines_come_as_soon_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader) as file, open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdin", file)
        received = text_input.read_lines([], None)
        for line in ("one", "two"):
            output.write(line + "\n")
            output.flush()
            timer = threading.Timer(20, output.close)  # ends the reading if nothing comes
            timer.start()
            assert next(received) == line
            timer.cancel()


def test_the_segments_of_sgml_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.sgm").write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE mteval>\n<srcset setid="a">\n<doc>\n<seg id="1">A &amp; B'
        "</seg>\n<p><SEG id='2'> over\nlines </SEG></p><seg id=3></seg>\n</doc></srcset>\n"
    )
    assert list(read_lines(tmp_path / "a.sgm")) == ["A & B", "over lines", ""]
