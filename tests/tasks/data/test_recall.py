"""Recall: its distribution is that of the authors, and a mixture has several lengths."""

import numpy as np
import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.recall import Recall
from tests.tasks.data.named_rows import named_rows


def authors_positions(rng: np.random.Generator, *, length: int, pairs: int, power: float) -> list:
    """Draw the positions of the queries as the authors' code does, without a bos.

    There is a gap of g = 0 … (length − 2 pairs)/2 − 1 pairs of tokens, each taken once, with
    probability ∝ (g + 1)^(power − 1), between the pairs and a query.
    """
    space = (length - 2 * pairs) // 2
    probabilities = power * np.arange(1, space + 1) ** (power - 1)
    probabilities /= probabilities.sum()
    gaps = rng.choice(space, size=pairs, replace=False, p=probabilities)
    return [2 * pairs + 2 * int(gap) for gap in gaps]


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_queries_are_where_the_authors_have_them(power: float) -> None:
    """The positions, and those of the first and the last query together, which depend."""
    rows, length, pairs = 8000, 32, 4
    rng = np.random.default_rng(0)
    theirs = np.array(
        [authors_positions(rng, length=length, pairs=pairs, power=power) for _ in range(rows)]
    )
    source = Recall(length=length, pairs=pairs, vocabulary=4096, power=power, size=rows)
    ours = source.draw_split("train").target_positions - 1  # without the bos
    assert ours.min() >= 2 * pairs and ours.max() < length
    for number in range(pairs):
        counts = [np.bincount(x[:, number] // 2, minlength=16) for x in (ours, theirs)]
        assert np.abs(counts[0] - counts[1]).max() < 5 * np.sqrt(2 * counts[1].max())
    for name in ("min", "max"):
        counts = [np.bincount(getattr(x, name)(axis=1) // 2, minlength=16) for x in (ours, theirs)]
        assert np.abs(counts[0] - counts[1]).max() < 5 * np.sqrt(2 * counts[1].max())


def test_a_blank_may_fill_the_other_positions() -> None:
    source = Recall(length=16, pairs=2, vocabulary=8, random_filler=False, size=300)
    assert source.symbols[-1] == "." and len(source.symbols) == 9
    for symbols, answers in named_rows(source):
        assert {*range(5, 16)} - answers.keys() == {
            i for i, symbol in enumerate(symbols) if symbol == "."
        }


def test_a_mixture_has_sequences_of_several_lengths_in_every_split() -> None:
    source = Recall(
        length=40, pairs=8, vocabulary=64, mixture=[[16, 2, 1], [40, 4, 2.0]], size=1200, test=200
    )
    assert source.tokens_per_sequence == 40
    for split, tolerance in (("train", 0.06), ("test", 0.12)):
        shares = {}
        for symbols, answers in named_rows(source, split):
            text = [symbol for symbol in symbols if symbol != "<pad>"]
            assert symbols == text + ["<pad>"] * (40 - len(text))
            pairs = dict(zip(text[1 : 2 * len(answers) : 2], text[2::2], strict=False))
            assert {text[position]: answer for position, answer in answers.items()} == pairs
            kind = len(text), len(answers)
            shares[kind] = shares.get(kind, 0) + 1
        total = sum(shares.values())
        assert shares.keys() == {(40, 8), (16, 2), (40, 4)}
        for kind, share in {(40, 8): 0.25, (16, 2): 0.25, (40, 4): 0.5}.items():
            assert shares[kind] / total == pytest.approx(share, abs=tolerance)
        first = [sum(symbol != "<pad>" for symbol in x) for x, _ in named_rows(source, split)[:60]]
        assert {*first} == {16, 40}  # in random order


def test_a_test_at_another_length_has_one_length() -> None:
    longer = Recall(length=32, pairs=8, mixture=[[16, 2, 1]]).with_length(64)
    assert (longer.length, longer.pairs, longer.mixture) == (64, 16, [])


@pytest.mark.parametrize(
    "mixture, reason",
    [
        ([[32, 2]], r"\[length, pairs, weight\].* got \[32, 2\]"),
        ([32], r"\[length, pairs, weight\].* got 32"),
        ([[128, 2, 1]], "at most length=64"),
        ([[32, 2, 0]], "weights above 0"),
        ([[32, 2.5, 1]], r"got \[32, 2.5, 1\]"),
        ([[32, 9, 1]], "got pairs=9 and length=32"),
        ([[64, 16, 1]], "vocabulary=16 and pairs=16"),
    ],
)
def test_impossible_mixtures_are_refused(mixture: list, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Recall(vocabulary=16, mixture=mixture)
