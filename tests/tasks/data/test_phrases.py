import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.sources.phrases import Phrases

SMALL = {"size": 1500, "valid": 60, "test": 60}


@pytest.fixture(scope="module")
def default() -> dict[str, list[tuple[str, str]]]:
    return Phrases().splits()


def test_sizes_and_disjoint_source_lines(default) -> None:
    assert {split: len(pairs) for split, pairs in default.items()} == {
        "train": 20000,
        "valid": 500,
        "test": 500,
    }
    sources = {split: {source for source, _ in pairs} for split, pairs in default.items()}
    assert not sources["train"] & sources["valid"]
    assert not sources["train"] & sources["test"]
    assert not sources["valid"] & sources["test"]
    assert len(sources["valid"]) == len(sources["test"]) == 500


def test_a_source_line_has_one_translation(default) -> None:
    pairs = {pair for split in default.values() for pair in split}
    assert len(pairs) == len({source for source, _ in pairs})


def test_splits_of_other_sizes_and_seeds_share_no_line(default) -> None:
    train = {source for source, _ in default["train"]}
    other = Phrases(size=3000, valid=300, test=300, seed=7).splits()
    assert not train & {source for split in ("valid", "test") for source, _ in other[split]}
    assert other["train"] != default["train"][:3000]


def test_lines_are_short_varied_and_plain(default) -> None:
    words = [len(source.split()) for source, _ in default["train"]]
    assert sum(count <= 12 for count in words) / len(words) > 0.95
    for pair in default["train"]:
        for line in pair:
            assert line and line == " ".join(line.split()) and line.isprintable()
            assert "\u202f" not in line and "\xa0" not in line
    text = "\n".join(source for source, _ in default["train"])
    for kind in (
        " ago",
        "kilometers",
        "US dollars",
        "%",
        " PM",
        "and",
        " or ",
        "million",
        "hundred",
    ):
        assert kind in text, kind


def test_names_are_seen_often_enough_to_be_learned(default) -> None:
    text = "\n".join(source for source, _ in default["train"])
    counts = Counter(
        {name: text.count(name) for name in ("Zimbabwe", "Iceland", "Zulu", "Estonian")}
    )
    assert counts["Zimbabwe"] == counts["Zulu"] == 0
    assert counts["Iceland"] >= 30 and counts["Estonian"] >= 30


def test_probes_are_in_no_split(default) -> None:
    probes = Phrases().probes()
    assert probes[0] == ("Wednesday, March 4, 2026", "quarta-feira, 4 de março de 2026")
    held = {source for split in default.values() for source, _ in split}
    assert not held & {source for source, _ in probes}


@pytest.mark.parametrize(
    ("source", "target", "pair"),
    [
        ("en", "de", ("Wednesday, March 4, 2026", "Mittwoch, 4. März 2026")),
        ("fr", "ru", ("mercredi 4 mars 2026", "среда, 4 марта 2026 г.")),  # noqa: RUF001
        ("pt", "ja", ("quarta-feira, 4 de março de 2026", "2026年3月4日水曜日")),
    ],
)
def test_any_pair_of_locales(source: str, target: str, pair: tuple[str, str]) -> None:
    phrases = Phrases(source=source, target=target, **SMALL)
    splits = phrases.splits()
    assert phrases.probes()[0] == pair
    assert [len(splits[split]) for split in ("train", "valid", "test")] == [1500, 60, 60]
    assert not any("num2words" in note for note in phrases.notes)


def test_kinds_that_a_locale_lacks_are_left_out_and_noted() -> None:
    phrases = Phrases(source="en", target="sw", **SMALL)
    splits = phrases.splits()
    assert any("num2words (sw)" in note and "spelled-out" in note for note in phrases.notes)
    assert not any(" hundred and " in source for source, _ in splits["train"])


def test_numbers_avoid_the_faulty_variants() -> None:
    targets = " | ".join(target for _, target in Phrases(target="fr_CH", **SMALL).splits()["train"])
    assert "soixante-dix" in targets
    assert not any("num2words" in note for note in Phrases(target="fr_CH", **SMALL).notes)


@pytest.mark.slow
def test_every_process_draws_the_same_lines() -> None:
    script = (
        "import json; from attention_zoo.tasks.data.sources.phrases import Phrases;"
        f"print(json.dumps(Phrases(**{SMALL}).splits()))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    here = json.dumps(Phrases(**SMALL).splits()).encode()
    assert {hashlib.sha256(out).digest() for out in outputs} == {hashlib.sha256(here).digest()}


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UserError, match=r"does not know the locale 'pt_BRR'; try .*pt_BR"):
        Phrases(target="pt_BRR")
    with pytest.raises(UserError, match=r"data\.source\.valid must be at least 1, got 0"):
        Phrases(valid=0)
    with pytest.raises(UserError, match=r"data\.root=/x"):
        Phrases().with_root("/x")
