from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from attention_zoo.tasks.data.language_data import LanguageData
from attention_zoo.tasks.data.sources.base import Pair
from attention_zoo.tasks.data.sources.phrases import Phrases
from attention_zoo.tasks.data.sources.python_docs import PythonDocs
from attention_zoo.tasks.data.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
)
from attention_zoo.tasks.data.translation_data import TranslationData

CLEAN = Phrases(target="de", size=300, valid=40, test=40).splits()
BPE = partial(BytePairTokenizer.train, vocabulary_size=500)


class Pairs(Phrases):
    """Pairs that a test has made."""

    def __init__(self, splits: dict[str, list[Pair]]) -> None:
        super().__init__(size=1, valid=1, test=1)
        self.made = splits

    def splits(self) -> dict[str, list[Pair]]:
        return self.made

    def cache_key(self) -> dict[str, object]:
        return {"made": self.made}


def prepared(folder: Path, splits: dict[str, list[Pair]], **options) -> TranslationData:
    arguments = {"tokenizer": ByteTokenizer.train, "cache_dir": folder, "max_tokens": 256}
    data = TranslationData(source=Pairs(splits), **(arguments | options))
    data.prepare_data()
    return data


def train_with(change: Callable[[int, Pair], Pair]) -> dict[str, list[Pair]]:
    return CLEAN | {"train": [change(i, pair) for i, pair in enumerate(CLEAN["train"])]}


def every(n: int, text: str) -> Callable[[int, Pair], Pair]:
    return lambda i, pair: (pair[0], f"{pair[1]}{text}") if i % n == 0 else pair


DIRTY = {
    "empty": lambda i, pair: (pair[0], "") if i % 10 == 0 else pair,
    "equal sides": lambda i, pair: (pair[0], pair[0]) if i % 2 else pair,
    "repeated": lambda i, pair: CLEAN["train"][0] if i % 2 else pair,
    "markup": every(100, " <url>http://example.org</url>"),
    "subword marks": every(100, " lo@@ wer"),
    "tokenized": every(10, " , he said ."),
    "entities": every(100, " it&apos;s"),
    "tabs": lambda i, pair: (f"{pair[0]}\tsome\tcolumn", pair[1]),
    "broken characters": every(100, " cafÃ©\x00"),
    "over_long": lambda i, pair: (f" word{i}" * 60, f" Wort{i}" * 60) if i % 10 == 0 else pair,
    "alignment": lambda i, pair: (pair[0], CLEAN["train"][i - 1][1]),
}


@pytest.mark.parametrize("kind", DIRTY)
def test_what_is_usually_a_mistake_is_counted_with_the_remedy(kind: str, tmp_path: Path) -> None:
    data = prepared(tmp_path, train_with(DIRTY[kind]))
    [warning] = data.report["warnings"]
    assert warning.startswith(f"{kind}: ") and ";" in warning and "\n" not in warning
    if kind != "alignment":
        assert "of 300 train lines" in warning
        assert data.report["train"][kind.replace(" ", "_")] > 0
    assert prepared(tmp_path, train_with(DIRTY[kind])).report == data.report  # from the cache


@pytest.mark.parametrize("tag", ['<seg id="1">', "</tuv>", '<tuv xml:lang="de">', "<?xml", "<br/>"])
def test_tags_of_many_formats_are_markup(tag: str, tmp_path: Path) -> None:
    [warning] = prepared(tmp_path, train_with(every(50, tag))).report["warnings"]
    assert warning.startswith("markup: 6 of 300 train lines")


def test_test_lines_in_train_are_counted(tmp_path: Path) -> None:
    splits = CLEAN | {"train": [*CLEAN["train"], *CLEAN["test"][:3]]}
    data = prepared(tmp_path, splits)
    [warning] = data.report["warnings"]
    assert warning.startswith("in train: 3 of 40 test lines; take them out")
    assert data.report["test"]["in_train"] == 3


@pytest.mark.parametrize("split", ["valid", "test"])
def test_swapped_sides_are_noticed(split: str, tmp_path: Path) -> None:
    splits = CLEAN | {split: [(target, source) for source, target in CLEAN[split]]}
    [warning] = prepared(tmp_path, splits).report["warnings"]
    assert warning.startswith(f"swapped languages: the sources of the {split} split")


def test_unknown_characters_are_counted(tmp_path: Path) -> None:
    splits = CLEAN | {"test": [("Привет, мир", target) for _, target in CLEAN["test"]]}
    data = prepared(tmp_path, splits, tokenizer=CharacterTokenizer.train)
    [warning] = data.report["warnings"]
    assert warning.startswith("unknown characters: ") and "tokenizer=bpe" in warning
    assert data.report["test"]["unknown"] >= 9 * 40


def test_lines_that_are_not_translated_whole_are_said(tmp_path: Path) -> None:
    splits = CLEAN | {"test": [*CLEAN["test"], ("word " * 600, "Wort")]}
    [warning] = prepared(tmp_path, splits).report["warnings"]
    assert "3,001 tokens" in warning and "the first 2,048 of a line" in warning


@pytest.mark.parametrize(
    ("marked", "plain"),
    [("the lo@@ w@@ er one@@", "the lower one"), ("▁the ▁lo wer ▁one", "the lower one")],
)
def test_subwords_are_joined(marked: str, plain: str, tmp_path: Path) -> None:
    splits = {split: [(marked, marked)] * 4 + CLEAN[split][:20] for split in CLEAN}
    data = prepared(tmp_path, splits)
    for split in ("train", "valid", "test"):
        assert getattr(data, split)[0] == (plain, plain)
        assert getattr(data, split)[4:] == CLEAN[split][:20]
    assert "subwords, which were joined" in data.report["notes"][-1]


@pytest.mark.parametrize("target", ["pt_BR", "zh", "ru"])
@pytest.mark.parametrize("size", [300, 3000])
def test_clean_pairs_give_no_warning(target: str, size: int, tmp_path: Path) -> None:
    source = Phrases(target=target, size=size, valid=20, test=20)
    data = TranslationData(source=source, tokenizer=BPE, cache_dir=tmp_path)
    data.prepare_data()
    assert data.report["warnings"] == []


def test_clean_text_gives_no_warning(tmp_path: Path) -> None:
    data = LanguageData(source=PythonDocs(), tokenizer=CharacterTokenizer.train, cache_dir=tmp_path)
    data.prepare_data()
    assert data.report["warnings"] == []


TEXT = [f"Line {number} of a text that is long enough to be remembered." for number in range(400)]


@pytest.mark.parametrize(
    ("kind", "train", "valid"),
    [
        ("in train", TEXT[:300], TEXT[290:320]),
        ("repeated", TEXT[:100] * 3, TEXT[300:]),
        ("markup", [f"<p>{line}</p>" for line in TEXT[:300]], TEXT[300:]),
        ("subword marks", [f"lo@@ wer {line}" for line in TEXT[:300]], TEXT[300:]),
        ("tokenized", [f"{line[:-1]} , he said ." for line in TEXT[:300]], TEXT[300:]),
        ("unknown characters", TEXT[:300], ["Привет, мир"] * 20),
    ],
)
def test_running_text_is_looked_at(
    kind: str, train: list[str], valid: list[str], tmp_path: Path
) -> None:
    splits = {"train": ["\n".join(train)], "valid": ["\n".join(valid)], "test": ["a test\n" * 20]}
    data = LanguageData(
        source=Pairs(splits), tokenizer=CharacterTokenizer.train, cache_dir=tmp_path
    )
    data.prepare_data()
    [warning] = data.report["warnings"]
    assert warning.startswith(f"{kind}: "), warning
