import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.sources.parallel_files import ParallelFiles
from attention_zoo.tasks.data.sources.text_files import TextFiles

PAIRS = [("one", "um"), ('the "two", really', "dois"), ("", "três"), ("four\u2028", "quatro\u0085")]
TMX = (
    '<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4"><header '
    'srclang="en" datatype="plaintext"/><body>'
    '<tu><tuv xml:lang="en"><seg>A <bpt i="1">&lt;b></bpt>big<ept i="1">&lt;/b></ept> one &amp; '
    'all</seg></tuv><tuv xml:lang="pt-BR"><seg>Um\ngrande</seg></tuv></tu>'
    '<tu><tuv xml:lang="en"><seg>alone</seg></tuv></tu></body></tmx>'
)
XLIFF_1 = (
    '<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2"><file original="a" '
    'source-language="en" target-language="pt" datatype="plaintext"><body><trans-unit id="1">'
    '<source>A <g id="1">big</g> one</source><target>Um grande</target></trans-unit>'
    '<trans-unit id="2"><source>alone</source></trans-unit></body></file></xliff>'
)
XLIFF_2 = (
    '<xliff version="2.0" srcLang="en" trgLang="pt" xmlns="urn:oasis:names:tc:xliff:document:2.0">'
    '<file id="f"><unit id="1"><segment><source>A <pc id="1">big</pc> one</source><target>Um '
    "grande</target></segment><segment><source>Yes</source><target>Sim</target></segment></unit>"
    "</file></xliff>"
)


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8", newline="")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "a.en", "".join(f"{source}\n" for source, _ in PAIRS))
    write(tmp_path, "a.pt", "".join(f"{target}\n" for _, target in PAIRS))
    rows = "".join(f"0.9\t{source}\t{target}\n" for source, target in PAIRS)
    write(tmp_path, "numbered.tsv", rows)
    write(tmp_path, "named.tsv", "score\ten\tpt\n" + rows)
    write(tmp_path, "two.txt", "".join(f"{source}\t{target}\n" for source, target in PAIRS))
    with (tmp_path / "named.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("pt", "en"), *[pair[::-1] for pair in PAIRS]])
    with (tmp_path / "semicolons.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("en", "pt"), *PAIRS])
    flat = [{"en": source or None, "pt": target} for source, target in PAIRS]
    nested = [{"id": 1, "translation": record} for record in flat]
    write(tmp_path, "flat.jsonl", "".join(json.dumps(record) + "\n" for record in flat))
    write(tmp_path, "nested.json", "".join(json.dumps(record) + "\n\n" for record in nested))
    write(tmp_path, "nested.records", "".join(json.dumps(record) + "\n" for record in nested))
    (tmp_path / "packed.jsonl.gz").write_bytes(
        gzip.compress((tmp_path / "flat.jsonl").read_bytes())
    )
    parquet.write_table(pyarrow.Table.from_pylist(flat), tmp_path / "flat.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "nested.parquet")
    return tmp_path


NESTED = ["translation.en", "translation.pt"]
FORMS = [
    ([["a.en", "a.pt"]], None),
    (["a.en", "a.pt"], None),
    ("numbered.tsv", [2, 3]),
    ("named.tsv", ["en", "pt"]),
    (["named.tsv"], ["en", "pt"]),
    ("two.txt", None),
    ("two.txt", [1, 2]),
    ("named.csv", ["en", "pt"]),
    ("semicolons.csv", ["en", "pt"]),
    ("flat.jsonl", ["en", "pt"]),
    ("packed.jsonl", ["en", "pt"]),
    ("nested.json", NESTED),
    ("nested.records", NESTED),
    ("flat.parquet", ["en", "pt"]),
    ("nested.parquet", NESTED),
]


@pytest.mark.parametrize(("files", "columns"), FORMS)
def test_all_forms_hold_the_same_pairs(files, columns, folder: Path) -> None:
    source = ParallelFiles(train=files, valid=files, columns=columns, root=folder)
    assert source.splits()["train"] == PAIRS
    assert "line 2" in source.location("valid", 1)
    source.cache_key()


@pytest.mark.parametrize("files", [["named.tsv", "flat.jsonl"], [["a.en", "a.pt"], "flat.jsonl"]])
def test_several_files_follow_each_other(files, folder: Path) -> None:
    source = ParallelFiles(train=files, valid="flat.jsonl", columns=["en", "pt"], root=folder)
    assert source.splits()["train"] == PAIRS + PAIRS
    assert "flat.jsonl, line 1" in source.location("train", 4)


@pytest.mark.parametrize(
    ("name", "content", "columns", "pairs"),
    [
        ("a.tmx", TMX, ["en", "pt"], [("A big one & all", "Um grande")]),
        ("a.tmx", TMX, ["pt_BR", "en"], [("Um grande", "A big one & all")]),
        ("a.xlf", XLIFF_1, None, [("A big one", "Um grande")]),
        ("a.xliff", XLIFF_2, None, [("A big one", "Um grande"), ("Yes", "Sim")]),
        ("a.xliff", XLIFF_2, ["pt", "en"], [("Um grande", "A big one"), ("Sim", "Yes")]),
    ],
)
def test_translation_memories(name, content, columns, pairs, tmp_path: Path) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    source = ParallelFiles(train=name, valid=name, columns=columns, root=tmp_path)
    assert source.splits()["train"] == pairs


REFUSED = [
    ("a.en", None, "a.en is no file with both sides; give .*a.en,a.pt"),
    (["a.en"], None, "is no file with both sides"),
    (["a.en", "a.pt", "a.tmx"], None, "is no file with both sides"),
    ([["a.en", "a.pt", "b.en"]], None, r"pairs of files .*\[\[a.en,a.pt\]\]"),
    ([3], None, "must be pairs of files"),
    (7, None, "must be pairs of files"),
    ({"en": "a.en"}, None, "must be pairs of files"),
    ([], None, "must be pairs of files"),
    ("named.csv", None, r"first row 'pt', 'en'; choose .*\[pt,en\]"),
    ("named.tsv", None, "first row 'score', 'en', 'pt'; choose"),
    ("named.tsv", ["en", "fr"], "no column 'fr'; its first row names score, en, pt"),
    ("numbered.tsv", [0, 1], r"counts from 1, and .* has 3 columns, got \[0, 1\]"),
    ("numbered.tsv", [2, 4], "counts from 1"),
    ("numbered.tsv", [2], "must be 2 different names or numbers"),
    ("numbered.tsv", "en", "must be 2 different names or numbers"),
    ("named.tsv", ["en", "en"], "must be 2 different names or numbers"),
    ("twice.tsv", ["en", "pt"], "2 column 'en'"),
    ("a.tmx", ["pt", "pt-BR"], "must be two languages"),
    ([["a.en", "a.pt"]], ["en", "pt"], "would have no effect on pairs of files"),
    ("numbered.tsv", ["en", 2], "must be 2 different names or numbers"),
    ("flat.jsonl", None, "fields with names: en, pt; name 2"),
    ("nested.parquet", None, "translation.en, translation.pt; name 2"),
    ("flat.jsonl", [1, 2], "fields with names"),
    ("flat.jsonl", ["en", "de"], "record 1 has no field 'de'; it has en, pt"),
    ("nested.json", ["id", "translation.en"], "field 'id' is int, not text"),
    ("ragged.tsv", [1, 2], r"ragged.tsv, line 3: 3 columns, and the first row has 2"),
    ("bad.jsonl", ["en", "pt"], "line 2 is not JSON"),
    ("array.json", ["en", "pt"], "jq"),
    ("bad.csv", ["en", "pt"], "bad.csv, line 2: .*correct the row"),
    ("bad.parquet", ["en", "pt"], "bad.parquet cannot be read"),
    ("a.tmx", None, r"text in en, pt-br; name two of them: .*\[SOURCE,TARGET\]"),
    ("a.tmx", ["en", "ru"], "no text in 'ru'; it has en, pt-br"),
    ("bad.tmx", ["en", "ru"], "bad.tmx cannot be read"),
    ("html.tmx", ["en", "ru"], "XML of <html>"),
    ("empty.tsv", [1, 2], "empty.tsv holds no pair|empty.tsv has 0 columns"),
]


@pytest.mark.parametrize(("files", "columns", "message"), REFUSED)
def test_other_forms_are_refused_with_the_form(files, columns, message, folder: Path) -> None:
    write(folder, "ragged.tsv", "a\tb\n\nc\td\te\n")
    write(folder, "bad.jsonl", '{"en": "a", "pt": "b"}\n{"en": \n')
    write(folder, "array.json", '[\n{"en": "a", "pt": "b"}\n]')
    write(folder, "bad.csv", 'en,pt\n"a"b,c\n')
    write(folder, "bad.parquet", "PAR1 and no more")
    write(folder, "a.tmx", TMX)
    write(folder, "twice.tsv", "en\ten\tpt\na\tb\tc\n")
    write(folder, "bad.tmx", TMX[:-20])
    write(folder, "html.tmx", "<html><body/></html>")
    write(folder, "empty.tsv", "")
    with pytest.raises(UserError, match=message) as error:
        ParallelFiles(train=files, valid=[["a.en", "a.pt"]], columns=columns, root=folder).splits()
    assert "\n" not in str(error.value)


def test_an_entity_of_xml_reads_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entity = f'<!DOCTYPE tmx [<!ENTITY x SYSTEM "{tmp_path}/secret">]>'
    content = TMX.replace('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', entity).replace("alone", "&x;")
    write(tmp_path, "a.tmx", content.replace("Um\ngrande", "&x;"))
    with pytest.raises(UserError) as error:
        ParallelFiles(train="a.tmx", columns=["en", "pt"], root=tmp_path).splits()
    assert "secret" not in str(error.value)


def test_missing_splits_are_cut_off_by_a_seeded_share(tmp_path: Path) -> None:
    lines = [f"{number % 400}\tx{number % 400}\n" for number in range(800)]
    write(tmp_path, "a.tsv", "".join(lines))
    source = ParallelFiles(train="a.tsv", root=tmp_path)
    splits = source.splits()
    assert {split: len(pairs) for split, pairs in splits.items()} == {
        "train": 720,
        "valid": 40,
        "test": 40,
    }
    assert not {*splits["train"]} & {*splits["valid"], *splits["test"]}  # equal pairs stay together
    assert not {*splits["valid"]} & {*splits["test"]}
    assert any("no valid and test files are given: 5%" in note for note in source.notes)
    assert ParallelFiles(train="a.tsv", root=tmp_path).splits() == splits
    other = ParallelFiles(train="a.tsv", seed=1, root=tmp_path)
    assert other.splits()["valid"] != splits["valid"]
    assert other.cache_key() != source.cache_key()
    with_test = ParallelFiles(train="a.tsv", test="a.tsv", valid_fraction=0.1, root=tmp_path)
    assert [len(pairs) for pairs in with_test.splits().values()] == [720, 80, 800]
    with pytest.raises(UserError, match=r"valid_fraction must lie between 0 and 0\.5, got 0\.5"):
        ParallelFiles(train="a.tsv", valid_fraction=0.5)
    for option in ({"valid_fraction": 0.1}, {"seed": 1}):  # of what is not cut off
        with pytest.raises(UserError, match="would have no effect"):
            ParallelFiles(train="a.tsv", valid="b.tsv", **option)
    write(tmp_path, "b.tsv", "a\tb\nc\td\n")
    with pytest.raises(BadInput, match="2 different items, too few to cut off valid and test"):
        ParallelFiles(train="b.tsv", root=tmp_path).splits()


def test_without_train_files_only_an_evaluation_is_possible(folder: Path) -> None:
    for kind, forms in ((ParallelFiles, r"\[\[a.en,a.pt\]\].*a.tsv"), (TextFiles, "a.txt")):
        with pytest.raises(UserError, match=rf"data\.source\.train is missing; give it: .*{forms}"):
            kind(root=folder).splits()
    source = ParallelFiles(test=["a.en", "a.pt"], root=folder)
    with pytest.raises(UserError, match=r"data\.source\.train is missing"):
        source.splits()
    source.keep_only("test")
    assert source.splits() == {"test": PAIRS}
    with pytest.raises(UserError, match=r"data\.source\.valid is missing; .*source.valid=\[\["):
        ParallelFiles(test=["a.en", "a.pt"], root=folder).keep_only("valid")
    source = TextFiles(train="none.txt", valid="a.en", root=folder)
    source.keep_only("test")
    assert [*source.splits()] == ["test"]


def texts(source: TextFiles) -> dict[str, list[str]]:
    return {
        split: [document if isinstance(document, str) else "".join(document) for document in items]
        for split, items in source.splits().items()
    }


def test_the_rows_of_tables_are_documents(folder: Path) -> None:
    write(folder, "long.jsonl", '{"text": "a\\nb"}\n{"text": "c"}\n')
    for files, column, expected in (
        ("long.jsonl", "text", ["a\nb", "c"]),
        ("nested.parquet", "translation.en", [pair[0] for pair in PAIRS]),
        ("named.tsv", "pt", [pair[1] for pair in PAIRS]),
        ("numbered.tsv", 3, [pair[1] for pair in PAIRS]),
    ):
        source = TextFiles(train=files, valid=[files], column=column, root=folder)
        assert texts(source) == dict.fromkeys(("train", "valid", "test"), expected)
    with pytest.raises(UserError, match=r"is a table; name .*data\.source\.column=text"):
        TextFiles(train="long.jsonl", root=folder).splits()
    with pytest.raises(
        UserError, match=r"must be names of files, got \[\['a'\]\]; give it: .*a\.txt"
    ):
        TextFiles(train=[["a"]])


def test_a_column_of_plain_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"would have no effect on plain text; .*\.jsonl"):
        TextFiles(train="a.txt", column="text")


def test_the_end_of_a_text_is_cut_off_between_lines(tmp_path: Path) -> None:
    content = "".join(f"line {number:03}\r\n" for number in range(200))
    write(tmp_path, "a.txt", content)
    splits = texts(TextFiles(train="a.txt", root=tmp_path))
    assert [len(splits[split][0]) for split in splits] == [9 * 180, 9 * 10, 9 * 10]
    assert "".join(splits[split][0] for split in splits) == content.replace("\r", "")
    write(tmp_path, "b.txt", "one line\n")
    with pytest.raises(BadInput, match=r"b\.txt has 1 line, too few to cut off valid and test"):
        TextFiles(train="b.txt", root=tmp_path).splits()


def test_documents_are_cut_off_as_a_whole_where_they_are_many(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "".join(f'{{"text": "{number}"}}\n' for number in range(100)))
    splits = texts(TextFiles(train="a.jsonl", column="text", root=tmp_path))
    assert [len(splits[split]) for split in splits] == [90, 5, 5]
    assert sorted(int(text) for items in splits.values() for text in items) == [*range(100)]
    assert splits["valid"] != ["90", "91", "92", "93", "94"]
