"""The tasks of MAD are those of its authors, restated here as plain loops."""

import random
from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

import pytest
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.mad_fuzzy_recall import MadFuzzyRecall
from attention_zoo.tasks.data.diagnostics.mad_memorization import MadMemorization
from attention_zoo.tasks.data.diagnostics.mad_recall import MadRecall
from attention_zoo.tasks.data.diagnostics.mad_selective_copy import MadSelectiveCopy
from tests.tasks.data.named_rows import Row, named_rows
from tests.tasks.data.test_diagnostics import CONF

SIZES: dict[str, Any] = {"size": 2000, "valid": 1, "test": 2000}


def assert_same_means(ours: list[float], theirs: list[float]) -> None:
    """Compare the means of two samples, whose error is known."""
    error = (stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs)) ** 0.5
    assert abs(fmean(ours) - fmean(theirs)) <= 4.5 * error


def as_text(row: Row) -> list[str]:
    """Return the sequence without bos, with the answer to the last token."""
    symbols, answers = row
    return [*symbols[1:], answers[len(symbols) - 1]]


def recall_text(length: int, *, keys: int, values: int, noise: int, fraction: float) -> list[str]:
    """Write the authors' recall: pairs or noise, and one of the keys again with its value."""
    value_of: dict[str, str] = {}
    text: list[str] = []
    pairs = length // 2 - 1
    no_noise = random.randrange(pairs)
    for number in range(pairs):
        if number != no_noise and random.random() < fraction:
            text += [f"n{random.randint(1, noise)}", f"n{random.randint(1, noise)}"]
            continue
        key = f"k{random.randint(1, keys)}"
        value_of.setdefault(key, f"v{random.randint(1, values)}")
        text += [key, value_of[key]]
    key = random.choice(sorted(value_of))
    return [*text, key, value_of[key]]


def repeated_keys(text: list[str]) -> dict[int, str]:
    """Return the value of each key that was there before, by the key's position after a bos."""
    value_of: dict[str, str] = {}
    answers = {}
    for position in range(0, len(text), 2):
        key, value = text[position : position + 2]
        if key[0] == "n":
            assert value[0] == "n"
            continue
        if key in value_of:
            answers[position + 1] = value
        assert value_of.setdefault(key, value) == value
    return answers


RECALL = {
    "recall": MadRecall(length=24, vocabulary=16, **SIZES),
    "noisy_recall": MadRecall(
        length=24, vocabulary=23, noise_vocabulary=6, noise_fraction=0.3, **SIZES
    ),
}


@pytest.mark.parametrize("source", RECALL.values(), ids=RECALL)
def test_recall_asks_for_values_of_repeated_keys(source: MadRecall) -> None:
    random.seed(0)
    options = {"noise": source.noise_vocabulary, "fraction": source.noise_fraction}
    theirs = [recall_text(24, keys=8, values=source.values, **options) for _ in range(2000)]
    ours = []
    for row in named_rows(source, "test"):
        text = as_text(row)
        assert len(text) == 24 and row[1] == repeated_keys(text)
        assert max(row[1]) == 23  # The last key was there before.
        ours.append(text)
    for statistic in (
        lambda text: len(repeated_keys(text)),
        lambda text: sum(symbol[0] == "n" for symbol in text),
        lambda text: text.count(text[-2]),  # by key, not by pair, is the last one chosen
        lambda text: len(set(text)),
        lambda text: text.index(text[-2]),
    ):
        assert_same_means([statistic(x) for x in ours], [statistic(x) for x in theirs])
    assert {symbol for text in ours for symbol in text} == {*source.symbols}


@pytest.mark.parametrize("source", [*RECALL.values(), MadFuzzyRecall(length=40, **SIZES)])
def test_training_predicts_every_next_token(source: MadRecall | MadFuzzyRecall) -> None:
    for symbols, answers in named_rows(source, "train"):
        text = as_text((symbols, answers))
        assert answers == dict(enumerate(text[1:], start=1))


def fuzzy_text(length: int, *, keys: int, values: int, most: int, shortest_key: int) -> list[str]:
    """Write the authors' fuzzy recall; the last pair is placed early enough to be there before."""

    def draw_motif(kind: str, count: int, symbols: int) -> tuple[str, ...]:
        return tuple(f"{kind}{i}" for i in random.sample(range(1, count + 1), symbols))

    def draw_pair() -> tuple[tuple[str, ...], tuple[str, ...]]:
        key = draw_motif("k", keys, random.randint(shortest_key, most))
        return key, draw_motif("v", values, random.randint(1, most))

    last_key, last_value = draw_pair()
    end = length - len(last_key) - len(last_value) - 2 * most
    start = random.randint(0, end - 2 * most)
    value_of = {last_key: last_value}
    text: list[str] = []
    is_placed = False
    while len(text) < end:
        key, value = draw_pair()
        if len(text) >= start and not is_placed:
            key = last_key
        is_placed |= key == last_key
        text += [*key, *value_of.setdefault(key, value)]
    text += [*last_key, *last_value]
    return ["."] * (length + 1 - len(text)) + text


def motifs(text: list[str]) -> list[tuple[str, ...]]:
    """Return runs of symbols of one kind: keys and values in turn, after the blanks."""
    runs: list[tuple[str, ...]] = []
    for symbol in text:
        if runs and runs[-1][0][0] == symbol[0]:
            runs[-1] = (*runs[-1], symbol)
        else:
            runs.append((symbol,))
    return [run for run in runs if run[0] != "."]


def repeated_motifs(text: list[str]) -> dict[int, str]:
    """Return the symbols of values whose key was there before, by the positions before them."""
    value_of: dict[tuple[str, ...], tuple[str, ...]] = {}
    answers = {}
    runs = motifs(text)
    position = text.count(".")
    for key, value in zip(runs[::2], runs[1::2], strict=True):
        position += len(key)
        if key in value_of:
            answers |= dict(enumerate(value, start=position))
        assert value_of.setdefault(key, value) == value
        position += len(value)
    return answers


@pytest.mark.parametrize("split", ["train", "test"])
def test_fuzzy_recall_asks_for_values_of_repeated_motifs(split: str) -> None:
    random.seed(1)
    shortest = 1 if split == "train" else 2
    source = MadFuzzyRecall(length=40, vocabulary=8, key_symbols=2, value_symbols=2, **SIZES)
    options = {"keys": 3, "values": 4, "most": 2, "shortest_key": shortest}
    theirs = [fuzzy_text(40, **options) for _ in range(2000)]
    ours = []
    for row in named_rows(source, split):
        text = as_text(row)
        assert len(text) == 41
        asked = repeated_motifs(text)
        assert max(asked) == 40  # The last key was there before.
        if split == "test":
            assert row[1] == asked
        runs = motifs(text)
        assert {len(key) for key in runs[::2]} <= {*range(shortest, 3)}
        assert {len(value) for value in runs[1::2]} <= {1, 2}
        assert all(len(set(run)) == len(run) for run in runs)
        ours.append(text)
    for statistic in (
        lambda text: len(repeated_motifs(text)),
        lambda text: text.count("."),
        lambda text: len(motifs(text)),
        lambda text: len(set(motifs(text)[::2])),
        lambda text: motifs(text)[::2].count(motifs(text)[-2]),
        lambda text: motifs(text).index(motifs(text)[-2]),
        lambda text: len(motifs(text)[-2]),
        lambda text: len(motifs(text)[-1]),
    ):
        assert_same_means([statistic(x) for x in ours], [statistic(x) for x in theirs])


def selective_copy_text(length: int, *, vocabulary: int, copied: int) -> list[str]:
    """Write the authors' selective copying: each blank goes in front of a symbol."""
    string = [str(random.randint(1, vocabulary - 2)) for _ in range(copied)]
    blanks = [0] * copied
    for _ in range(length - 2 * copied - 1):
        blanks[random.randrange(copied)] += 1
    text = []
    for symbol, count in zip(string, blanks, strict=True):
        text += ["."] * count + [symbol]
    return [*text, "|", *["."] * copied]


def test_selective_copy_asks_for_the_symbols_in_their_order() -> None:
    random.seed(2)
    source = MadSelectiveCopy(length=30, vocabulary=7, copied=4, **SIZES)
    theirs = [selective_copy_text(30, vocabulary=7, copied=4) for _ in range(2000)]
    ours = []
    for split in ("train", "test"):
        for symbols, answers in named_rows(source, split):
            text = symbols[1:]
            assert len(text) == 30 and text[25:] == ["|", *[".", ".", ".", "."]]
            assert text[24] != "."
            string = [symbol for symbol in text[:25] if symbol != "."]
            assert answers == dict(enumerate(string, start=27))
            ours.append(text)
    for copy in range(4):

        def index(text: list[str], copy: int = copy) -> int:
            return [i for i, symbol in enumerate(text) if symbol != "."][copy]

        assert_same_means([index(x) for x in ours], [index(x) for x in theirs])
        if copy < 3:  # The last one is next to the mark.
            ratio = stdev(map(index, ours)) / stdev(map(index, theirs))
            assert ratio == pytest.approx(1, abs=0.08)


def test_memorization_has_one_map_for_all_splits_and_shows_no_value() -> None:
    source = MadMemorization(length=12, vocabulary=30, size=500, valid=50, test=300)
    value_of: dict[str, str] = {}
    for split in ("train", "valid", "test"):
        for symbols, answers in named_rows(source, split):
            assert len(symbols) == 13 and symbols[2::2] == ["?"] * 6
            assert [*answers] == [2, 4, 6, 8, 10, 12]
            assert all(symbol[0] == "k" for symbol in symbols[1::2])
            for position, value in answers.items():
                assert value_of.setdefault(symbols[position - 1], value) == value
    # 29 symbols without the mark: 14 keys and 15 values, of which one is left.
    assert len(value_of) == len({*value_of.values()}) == 14
    assert {*value_of} == {f"k{i}" for i in range(1, 15)}
    assert {*value_of.values()} < {f"v{i}" for i in range(1, 16)}


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: MadRecall(length=7), "length must be even"),
        (lambda: MadRecall(vocabulary=17, noise_vocabulary=16), "a key and a value next to"),
        (lambda: MadRecall(noise_fraction=0.2), "0 exactly if there are no symbols of noise"),
        (lambda: MadRecall(noise_vocabulary=4), "0 exactly if there are no symbols of noise"),
        (lambda: MadRecall(noise_vocabulary=4, noise_fraction=1.0), "below 1"),
        (lambda: MadFuzzyRecall(key_symbols=0), "key_symbols must be at least 1"),
        (lambda: MadFuzzyRecall(key_symbols=8), "as many keys and values as"),
        (lambda: MadFuzzyRecall(length=17), "room for three pairs"),
        (lambda: MadSelectiveCopy(length=33), "room for the symbols"),
        (lambda: MadSelectiveCopy(vocabulary=2), "vocabulary must be at least 3"),
        (lambda: MadMemorization(length=3), "length must be even"),
        (lambda: MadMemorization(vocabulary=2), "vocabulary must be at least 3"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make()


def test_noisy_recall_differs_from_recall_by_its_noise() -> None:
    plain, noisy = (
        OmegaConf.load(CONF / f"{name}.yaml").source for name in ("mad_recall", "mad_noisy_recall")
    )
    changes = {name: noisy[name] for name in plain if plain[name] != noisy[name]}
    assert changes == {"vocabulary": 32, "noise_vocabulary": 16, "noise_fraction": 0.2}
