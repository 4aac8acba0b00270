import sys
from io import BytesIO
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.sources.gettext_catalogues import GettextCatalogues, message_key

HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'
GERMAN = HEADER + (
    'msgid "Save"\nmsgstr "Speichern"\n\n'
    'msgctxt "a noun"\nmsgid "Save"\nmsgstr "Parade"\n\n'
    'msgid "Two\\nlines\\n"\nmsgstr "Zwei\\n"\n"Zeilen\\n"\n\n'
    '#, fuzzy\nmsgid "Open"\nmsgstr "Offen"\n\n'
    'msgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "%d Datei"\nmsgstr[1] "%d Dateien"\n\n'
    'msgid "Close"\nmsgstr ""\n\n'
    '#~ msgid "Quit"\n#~ msgstr "Beenden"\n'
)


def compiled(**entries: str) -> bytes:
    catalogue, file = Catalog(), BytesIO()
    for original, translation in entries.items():
        catalogue.add(original, translation)
    write_mo(file, catalogue)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of all layouts: po/LANG.po, LANG/LC_MESSAGES/NAME.mo, with what is left out."""
    french = HEADER + 'msgid "Save"\nmsgstr "Enregistrer"\n\nmsgid "Red"\nmsgstr "Rouge"\n'
    files = {
        "po/de.po": GERMAN.encode(),
        "po/fr.po": french.encode(),
        "locale/de/LC_MESSAGES/vim.mo": compiled(Red="Rot", Blue="Blau", Save="Speichern"),
        "locale/fr/LC_MESSAGES/vim.mo": compiled(Blue="Bleu"),
        "locale/pt_BR/LC_MESSAGES/tar.mo": compiled(Red="Vermelho"),
        "locale/pt_BR/LC_MESSAGES/tar.po": (HEADER + 'msgid "A"\nmsgstr "Um"\n').encode(),
        "locale/de/LC_MESSAGES/broken.mo": b"\xde\x12\x04\x95",
        "locale/de/LC_MESSAGES/empty.mo": b"",
        "locale/de/LC_MESSAGES/bytes.po": HEADER.encode() + b'msgid "A"\nmsgstr "\xe4"\n',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def all_pairs(source: GettextCatalogues) -> list[tuple[str, str]]:
    return sorted(source.read_split("train"))


def test_entries_are_pairs_and_the_others_are_counted(folder: Path) -> None:
    source = GettextCatalogues(catalogues=[str(folder)], target="de", valid_fraction=0.2)
    assert all_pairs(source) == [
        ("Blue", "Blau"),
        ("Red", "Rot"),
        ("Save", "Parade"),
        ("Save", "Speichern"),
        ("Two lines", "Zwei Zeilen"),
    ]
    (note,) = source.notes
    for count in ("1 fuzzy", "1 plural", "1 untranslated", "1 obsolete", "1 repeated"):
        assert count in note
    assert note.count("cannot be read") == 3 and "\n" not in note
    splits = source.splits()
    assert [len(pairs) for pairs in splits.values()][1:] != [0, 0]
    assert len([pair for pairs in splits.values() for pair in pairs]) == 5


def test_locales_are_told_by_folder_or_name(folder: Path) -> None:
    for name in ("pt_BR", "pt-br"):
        source = GettextCatalogues(catalogues=str(folder), target=name)
        assert all_pairs(source) == [("A", "Um")]  # the .po in place of its .mo


def test_two_translations_are_paired_by_their_original(folder: Path) -> None:
    source = GettextCatalogues(catalogues=str(folder), source="fr", target="de")
    assert all_pairs(source) == [("Bleu", "Blau"), ("Enregistrer", "Speichern")]
    assert "not translated in fr" in source.notes[0]


def test_an_installed_package_is_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "somepackage").mkdir()
    (folder / "somepackage/__init__.py").touch()
    (folder / "po").rename(folder / "somepackage/po")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    source = GettextCatalogues(catalogues=["somepackage"], target="fr")
    assert ("Red", "Rouge") in all_pairs(source)


def test_an_installed_distribution_may_have_catalogues_outside_of_its_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = folder / "some.package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some.package\nVersion: 1.0\n")
    (info / "RECORD").write_text("some.package-1.0.dist-info/METADATA,,\npo/fr.po,,\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    source = GettextCatalogues(catalogues=["some-package"], target="fr")
    assert all_pairs(source) == [("Red", "Rouge"), ("Save", "Enregistrer")]


def test_names_and_copies_are_left_out(tmp_path: Path) -> None:
    entries = {"label_save": "Speichern", "Blue": "Blau", "Linux": "Linux", "core.tab": "Reiter"}
    (tmp_path / "de.mo").write_bytes(compiled(**entries))
    (tmp_path / "fr.mo").write_bytes(compiled(label_save="Enregistrer"))
    source = GettextCatalogues(catalogues=str(tmp_path), target="de")
    assert all_pairs(source) == [("Blue", "Blau")]
    assert "2 identifiers" in source.notes[0]
    assert "1 the same in both languages" in source.notes[0]
    # Between two translations, an identifier is as good a link as any other original.
    source = GettextCatalogues(catalogues=str(tmp_path), source="fr", target="de")
    assert all_pairs(source) == [("Enregistrer", "Speichern")]


FORMER = (
    'msgid "Red"\nmsgstr "Rot"\n\n#, fuzzy\n#~| msgid "Old"\n#~ msgid "Older"\n#~ msgstr "Alt"\n'
)
THREE_FORMS = (
    'msgid "Red"\nmsgstr "Rot"\n\n'
    'msgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "a"\nmsgstr[1] "b"\nmsgstr[2] "c"\n'
)


def test_a_former_original_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "de.po").write_text(HEADER + FORMER)
    source = GettextCatalogues(catalogues=str(tmp_path), target="de")
    assert all_pairs(source) == [("Red", "Rot")]
    assert "1 obsolete" in source.notes[0] and "cannot be read" not in source.notes[0]


def test_the_mo_file_stands_in_for_a_damaged_po_file(tmp_path: Path) -> None:
    (tmp_path / "de.po").write_text(HEADER + THREE_FORMS)
    source = GettextCatalogues(catalogues=str(tmp_path), target="de")
    with pytest.raises(BadInput, match="no entry is translated"):
        all_pairs(source)
    (tmp_path / "de.mo").write_bytes(compiled(Red="Rot"))
    source = GettextCatalogues(catalogues=str(tmp_path), target="de")
    assert all_pairs(source) == [("Red", "Rot")]
    assert "cannot be read" not in source.notes[0]


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("Save", "&Save…"),
        ("Save as", "Save  _as:"),
        ("Cannot open %s", "cannot open %(path)r."),
        ("%-20s of {count}", "{} OF"),
        ("No file\nwas found", "No file was found!"),
    ],
)
def test_messages_with_the_same_words_are_one_message(message: str, other: str) -> None:
    assert message_key(message) == message_key(other)


def test_messages_with_other_words_differ() -> None:
    messages = ["Save", "Save all", "%s", "...", "", "100%", "10%", "{name}"]
    assert len({message_key(message) for message in messages}) == len(messages)


def test_no_message_is_in_two_splits(tmp_path: Path) -> None:
    forms = ("{}", "&{}", "{}…", "{}: %s", "{}:\n%(name)s", "%d {}.")
    for number, form in enumerate(forms):
        entries = {form.format(f"Open file {i}"): f"Datei {i} öffnen {number}" for i in range(60)}
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/de.mo").write_bytes(compiled(**entries))
    source = GettextCatalogues(catalogues=str(tmp_path), target="de", valid_fraction=0.2)
    splits = source.splits()
    numbers = {split: {text.split()[1] for _, text in pairs} for split, pairs in splits.items()}
    assert sum(map(len, splits.values())) == 60 * len(forms)
    assert {split: len(found) for split, found in numbers.items()} == {
        "train": 36,
        "valid": 12,
        "test": 12,
    }
    assert len(set().union(*numbers.values())) == 60


def test_what_is_not_there_is_refused_in_one_line(folder: Path) -> None:
    for options, message in (
        (
            {"target": "ru"},
            r"no catalogue of ru is in .*; there is de, .*fr.*catalogues=\[FOLDER\]",
        ),
        ({"target": "de", "source": "ru"}, "no catalogue of ru"),
        ({"target": "de", "catalogues": ["nothing_here"]}, "no folder and no installed package"),
        ({"target": "de", "catalogues": ["a.b"]}, "no folder and no installed package"),
        ({"target": "de", "catalogues": []}, "names nothing"),
        ({"target": "en"}, "must differ"),
        ({"target": "fr", "source": "pt_BR"}, "no entry is translated from pt_BR to fr"),
    ):
        with pytest.raises(UserError, match=message) as error:
            GettextCatalogues(**({"catalogues": str(folder)} | options)).splits()
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="gettext has no"):
        GettextCatalogues(catalogues="a", target="de").with_root(folder)
    with pytest.raises(BadInput, match="too few to cut off"):
        GettextCatalogues(catalogues=str(folder), target="pt_BR").splits()


def test_the_key_follows_the_content(folder: Path) -> None:
    source = GettextCatalogues(catalogues=str(folder), target="fr")
    before = source.cache_key()
    assert source.cache_key() == before
    (folder / "po/fr.po").write_text(HEADER)
    assert source.cache_key() != before


def test_damaged_catalogues_are_the_reason_where_no_pair_is_left(tmp_path: Path) -> None:
    file = tmp_path / "de" / "LC_MESSAGES" / "a.mo"
    file.parent.mkdir(parents=True)
    file.write_bytes(compiled(Red="Rot")[:20])
    with pytest.raises(BadInput, match=r"left out: 1 in catalogues that cannot be read.*a\.mo"):
        GettextCatalogues(catalogues=[str(tmp_path)], target="de").splits()
