import gzip
import sys
from itertools import combinations, permutations
from pathlib import Path
from types import SimpleNamespace

import pytest

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.sources.hub import HubPairs, HubTexts
from attention_zoo.tasks.data.sources.parallel_files import ParallelFiles
from attention_zoo.tasks.data.sources.python_docs import PythonDocs
from attention_zoo.tasks.data.sources.python_source import PythonSource, find_leaders
from attention_zoo.tasks.data.sources.python_text import PythonText
from attention_zoo.tasks.data.sources.text_files import OneTextFile, TextFiles, cut_text

PAIR_FILES = {"train": "train", "valid": "dev", "test": "test"}


def write_pairs(folder: Path, **lines: list[str]) -> None:
    """Write files: `train_en=["a"]` writes train.en, one line for each string."""
    for name, content in lines.items():
        text = "".join(line + "\n" for line in content)
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8", newline="\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pairs(
        tmp_path,
        train_en=["one", "two", ""],
        train_pt=["um", "dois", "três"],
        dev_en=["four"],
        dev_pt=["quatro"],
        test_en=["five"],
        test_pt=["cinco"],
    )
    return tmp_path


def files(folder: Path) -> ParallelFiles:
    return ParallelFiles.from_patterns(["en", "pt"], PAIR_FILES, folder)


def test_lines_are_paired(folder: Path) -> None:
    splits = files(folder).splits()
    assert splits["train"] == [("one", "um"), ("two", "dois"), ("", "três")]
    assert splits["test"] == [("five", "cinco")]


def test_gzipped_files_are_found_and_several_follow_each_other(folder: Path) -> None:
    for name in ("dev.en", "dev.pt"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    source = ParallelFiles.from_patterns(
        ["en", "pt"], {"train": ["train", "{}.x", "dev"], "valid": "dev", "test": "dev"}, folder
    )
    write_pairs(folder, en_x=["six"], pt_x=["seis"])
    assert [pair[0] for pair in source.splits()["train"]] == ["one", "two", "", "six", "four"]
    assert "train.en" in source.location("train", 2) and "line 3" in source.location("train", 2)
    assert "en.x" in source.location("train", 3) and "line 1" in source.location("train", 3)
    assert "dev.en" in source.location("train", 4) and "line 1" in source.location("train", 4)


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    odd = ["a\u0085b", "c\u2028d\x0be", "f\r", "g"]
    write_pairs(tmp_path, train_en=odd, train_pt=["1", "2", "3", "4"])
    source = ParallelFiles(
        train=[["train.en", "train.pt"]], valid=[["train.en", "train.pt"]], root=tmp_path
    )
    splits = source.splits()
    assert splits["train"] == [
        ("a\u0085b", "1"),
        ("c\u2028d\x0be", "2"),
        ("f", "3"),
        ("g", "4"),
    ]
    assert splits["test"] == splits["valid"]
    assert any("test split is the valid split" in note for note in source.notes)


def test_unequal_line_counts_are_refused(folder: Path) -> None:
    write_pairs(folder, dev_pt=["quatro", "a mais", "a mais"])
    with pytest.raises(
        BadInput, match=r"dev\.en has 1 line and .*dev\.pt has 3: lines 2 to 3 .*align"
    ):
        files(folder).splits()


def test_invalid_utf8_is_refused_with_its_line(folder: Path) -> None:
    (folder / "train.pt").write_bytes("um\ndois\ntr\xeas\n".encode("latin1"))
    with pytest.raises(BadInput, match=r"train\.pt, line 3: byte 0xea is not valid UTF-8; .*iconv"):
        files(folder).splits()


def test_a_missing_file_is_refused_with_what_there_is(folder: Path) -> None:
    (folder / "test.en").unlink()
    with pytest.raises(
        BadInput,
        match=r"no file .*test\.en \(nor test\.en\.gz, .*the folder holds dev\.en.*data\.root",
    ):
        files(folder).splits()
    with pytest.raises(BadInput, match="no such folder"):
        files(folder / "none").splits()


def test_an_empty_split_is_refused(folder: Path) -> None:
    write_pairs(folder, dev_en=[], dev_pt=[])
    with pytest.raises(BadInput, match=r"dev\.en holds no line"):
        files(folder).splits()


def test_a_broken_archive_is_refused(folder: Path) -> None:
    (folder / "dev.en").unlink()
    (folder / "dev.en.gz").write_bytes(gzip.compress(b"four\n")[:-6])
    with pytest.raises(BadInput, match=r"dev\.en\.gz cannot be read .*again"):
        files(folder).splits()


def test_files_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(UserError, match=r"train must be pairs of files.*got \['a\.en'\]"):
        ParallelFiles(train=[["a.en"]], valid=[["b.en", "b.pt"]])
    with pytest.raises(UserError, match="pair must be two languages"):
        ParallelFiles.from_patterns(["en"], PAIR_FILES, ".")


def test_no_error_has_more_than_one_line(folder: Path) -> None:
    (folder / "test.en").unlink()
    with pytest.raises(BadInput) as error:
        files(folder).splits()
    assert "\n" not in str(error.value)


def test_the_key_follows_the_content(folder: Path) -> None:
    before = files(folder).cache_key()
    assert files(folder).cache_key() == before
    write_pairs(folder, dev_pt=["Quatro"])
    assert files(folder).cache_key() != before


def test_texts_are_one_document_a_file(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_bytes(f"{name}\r\n\n{name}".encode())
    source = TextFiles(train=["a.txt", "b.txt"], valid="c.txt", root=tmp_path)
    texts = {
        split: ["".join(document) for document in documents]
        for split, documents in source.splits().items()
    }
    assert texts == {
        "train": ["a\n\na", "b\n\nb"],
        "valid": ["c\n\nc"],
        "test": ["c\n\nc"],
    }
    with pytest.raises(BadInput, match=r"no file .*d\.txt"):
        TextFiles(train=["d.txt"], valid="c.txt", root=tmp_path).splits()


def test_cuts_keep_every_byte_and_lie_between_characters() -> None:
    text = "aé日👧" * 50
    for fractions in ([0.9, 0.1], [0.5, 0.25, 0.25], [0.33, 0.33, 0.34]):
        parts = cut_text(text, fractions)
        assert "".join(parts) == text
        assert len(parts) == len(fractions)
    with pytest.raises(UserError, match="sum to 1"):
        OneTextFile(file="a", fractions=[0.9, 0.2])


@pytest.mark.parametrize("source_class", [PythonDocs, PythonSource])
def test_splits_of_python_text_share_no_long_paragraph(source_class: type[PythonText]) -> None:
    source = source_class()
    splits = source.splits()
    size = {split: sum(map(len, texts)) for split, texts in splits.items()}
    for split in ("valid", "test"):
        assert 0.02 < size[split] / sum(size.values()) <= 0.05
    paragraphs = {
        split: {" ".join(part.split()) for text in texts for part in text.split("\n\n")}
        for split, texts in splits.items()
    }
    for one, other in combinations(paragraphs, 2):
        shared = [part for part in paragraphs[one] & paragraphs[other] if len(part) > 200]
        assert not shared
    key = source.cache_key()
    assert key == source_class().cache_key()
    assert key != source_class(valid_fraction=0.1).cache_key()


def test_python_source_leaves_out_what_some_machines_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    license_text = "# All of the license. " * 20
    files = {
        "ast.py": f"tree = 1\n\n{license_text}\n",
        "bz2.py": "".join(f"x{i} = {i}\n" for i in range(60)),
        "json/__init__.py": "",
        "json/decoder.py": f"{license_text}\n\nparse = 2\n",
        "unittest/mock.py": "# -*- coding: latin-1 -*-\né = 1\n",
        "unittest/test/test_mock.py": "test = 1\n",
        "test/test_ast.py": "test = 1\n",
        "tkinter/__init__.py": "window = 1\n",
        "encodings/cp1250.py": "table = 1\n",
        "site-packages/own.py": "own = 1\n",
        "own.py": "own = 1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, "latin-1")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    source = PythonSource()
    assert source.groups() == {
        "ast": [files["ast.py"], files["json/decoder.py"]],
        "bz2": [files["bz2.py"]],
        "unittest": [files["unittest/mock.py"]],
    }
    assert source.notes == [
        "4 files of 4 modules and packages; 1 follow another one that shares a paragraph with them"
    ]
    key = source.cache_key()
    (tmp_path / "bz2.py").write_text("x = 2\n")
    assert source.cache_key() != key
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="without the source of its standard library"):
        source.splits()


def test_sharing_a_paragraph_is_transitive() -> None:
    one, two = "first line of it " * 20, "second line of it " * 20
    modules = {"c": [one], "a": [f"{one}\n\n{two}"], "b": ["x", two], "d": ["other"]}
    for order in permutations(modules):
        leaders = find_leaders({name: modules[name] for name in order})
        assert leaders == {"a": "a", "b": "a", "c": "a", "d": "d"}


def hub_pairs(**changes) -> HubPairs:
    arguments = {
        "path": "some/corpus",
        "pair": ["en", "pt"],
        "splits": {"train": "train", "valid": "validation", "test": "test"},
        "files": PAIR_FILES,
        "column": "translation",
    }
    return HubPairs(**(arguments | changes))


def replace_hub(monkeypatch: pytest.MonkeyPatch, load) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


@pytest.mark.parametrize("source_class", [PythonDocs, PythonSource])
def test_a_fraction_that_leaves_no_text_to_train_on_is_refused(
    source_class: type[PythonText],
) -> None:
    with pytest.raises(UserError, match=r"lie between 0 and 0\.5, got 0\.7; 0\.05 is usual"):
        source_class(valid_fraction=0.7)


def test_hub_pairs_are_read_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"en": "one", "pt": "um"}, {"en": "two", "pt": "dois"}]
    nested = {split: {"translation": rows} for split in ("train", "validation", "test")}
    replace_hub(monkeypatch, lambda path, config, revision: nested)
    assert hub_pairs().splits()["valid"] == [("one", "um"), ("two", "dois")]
    flat = {split: {"en": ["one"], "pt": ["um"]} for split in ("train", "validation", "test")}
    replace_hub(monkeypatch, lambda path, config, revision: flat)
    assert hub_pairs(column=None).splits()["test"] == [("one", "um")]
    with pytest.raises(BadInput, match=r"some/corpus of the Hugging Face hub has no 'de'"):
        hub_pairs(column=None, pair=["en", "de"]).splits()


def test_hub_texts_are_joined_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_hub(monkeypatch, lambda *_, **__: {"train": {"text": ["a" * 80, "b" * 20]}})
    files = {"file": "x", "fractions": [0.9, 0.1]}
    splits = HubTexts(path="some/text", splits="train", files=files).splits()
    assert splits["train"] == ["a" * 80 + "b" * 10]
    assert splits["valid"] == splits["test"] == ["b" * 10]


def test_a_hub_that_does_not_answer_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'some/corpus' on the Hub\nand more")

    replace_hub(monkeypatch, unreachable)
    with pytest.raises(
        BadInput,
        match=r"hub did not give some/corpus \(Couldn't reach.*data\.root=FOLDER.*train\.en",
    ) as error:
        hub_pairs().splits()
    assert "\n" not in str(error.value)


def test_a_missing_package_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'attention-zoo\[hub\]'; or data\.root=FOLDER"):
        hub_pairs().splits()


def test_a_corpus_is_read_from_a_folder_instead(folder: Path) -> None:
    assert hub_pairs().with_root(folder).splits()["valid"] == [("four", "quatro")]
    with pytest.raises(BadInput, match=r"no folder .*none"):
        hub_pairs().with_root(folder / "none")


def test_real_line_counts(real) -> None:
    news = ParallelFiles.from_patterns(
        ["en", "de"],
        {"train": "newstest2009", "valid": "newstest2013", "test": "newstest2014"},
        real("wmt-news-en-de"),
    ).splits()
    assert [len(news[split]) for split in ("train", "valid", "test")] == [2525, 3000, 3003]
    assert sum(target.count("\u0085") for _, target in news["train"]) == 8


def test_real_shakespeare_is_cut_at_nine_tenths(real) -> None:
    source = OneTextFile(file="input.txt", fractions=[0.9, 0.1], root=real("tinyshakespeare"))
    splits = source.splits()
    assert len(splits["train"][0]) == 1003854
    assert len(splits["valid"][0]) == 111540
    assert splits["test"] == splits["valid"]


def test_real_wikitext_without_a_train_file_is_refused(real) -> None:
    with pytest.raises(
        BadInput, match=r"no file .*train\.txt .*holds test\.txt\.gz, valid\.txt\.gz"
    ):
        TextFiles(
            train="train.txt", valid="valid.txt", test="test.txt", root=real("wikitext-2")
        ).splits()
    chosen = TextFiles(train="valid.txt", valid="test.txt", root=real("wikitext-2")).splits()
    assert sum(line.endswith("\n") for (text,) in [[*chosen["train"]]] for line in text) == 3760
