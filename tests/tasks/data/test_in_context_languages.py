"""In-context languages: each sequence has strings of one random automaton."""

from collections import Counter

import numpy as np
import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.in_context_languages import InContextLanguages
from tests.tasks.data.named_rows import named_rows

SOURCE = InContextLanguages(
    length=9, states=6, vocabulary=7, min_strings=3, max_strings=5, size=400, valid=1, test=400
)


def test_automata_have_one_to_three_ways_out_of_each_state() -> None:
    rows = 3000
    source = InContextLanguages(states=12, vocabulary=7)
    ways, symbols, states = source.draw_automata(np.random.default_rng(0), rows)
    assert Counter(ways.ravel().tolist()).keys() == {1, 2, 3}
    alphabets, sizes = Counter[int](), Counter[int]()
    for row in range(rows):
        size = max(states[row, 0]) + 1
        for state in range(6):
            letters, targets = symbols[row, state].tolist(), states[row, state].tolist()
            assert len({*letters}) == len({*targets}) == 3
            assert state not in targets
            size = max(size, *(target + 1 for target in targets))
        sizes[size] += 1
        alphabets[len({*symbols[row].ravel().tolist()})] += 1
    # Nearly always the last state, and each letter, is one of the three of some state.
    for counts, expected in ((sizes, {*range(4, 13)}), (alphabets, {4, 5, 6, 7})):
        for number in expected:
            assert counts[number] / rows == pytest.approx(1 / len(expected), abs=0.04)


def test_strings_follow_their_automaton_and_take_its_ways_equally_often() -> None:
    # The automata are drawn first, so that the same generator gives them again.
    ways, symbol_of_way, state_of_way = SOURCE.draw_automata(np.random.default_rng(3), 500)
    symbols, is_given = SOURCE.draw_strings(np.random.default_rng(3), 500)
    choices, lengths, strings = Counter[tuple[int, int]](), Counter[int](), Counter[int]()
    for row in range(500):
        state, length, left = 0, 0, set()
        line = symbols[row][symbols[row] >= 0].tolist()
        assert symbols[row, : len(line)].tolist() == line and not is_given[row, len(line) :].any()
        for column, symbol in enumerate([*line, 7]):
            if symbol == 7:  # the separator, and the end
                lengths[length] += 1
                state = length = 0
                assert column == len(line) or not is_given[row, column]
                continue
            count = ways[row, state]
            way = symbol_of_way[row, state, :count].tolist().index(symbol)
            choices[count, way] += 1
            assert is_given[row, column] == (count == 1 and state in left)
            left.add(state)
            state = state_of_way[row, state, way]
            length += 1
        strings[line.count(7) + 1] += 1
    assert strings.keys() == {3, 4, 5} and lengths.keys() == {*range(1, 10)}
    for count in (2, 3):
        taken = [choices[count, way] for way in range(count)]
        assert taken == pytest.approx([sum(taken) / count] * count, rel=0.1)
    for count in lengths.values():
        assert count / sum(lengths.values()) == pytest.approx(1 / 9, abs=0.03)


def test_training_asks_for_all_symbols_and_tests_for_those_that_the_sequence_gives() -> None:
    for split in ("train", "test"):
        for symbols, answers in named_rows(SOURCE, split):
            line = [symbol for symbol in symbols if symbol != "<pad>"]
            last = max(answers)
            assert last < len(line)
            for position, answer in answers.items():
                assert answer != "|" and position >= 1
                assert position + 1 == len(line) or line[position + 1] == answer
            if split == "train":
                asked = {i for i in range(1, len(line) - 1) if line[i + 1] != "|"}
                assert asked <= answers.keys() <= asked | {len(line) - 1}


def test_no_sequence_without_a_query_is_in_a_test() -> None:
    short = InContextLanguages(
        length=4, states=4, vocabulary=4, min_strings=2, max_strings=2, size=1, valid=1, test=50
    )
    assert all(answers for _, answers in named_rows(short, "test"))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"states": 3}, "states and vocabulary must be at least 4"),
        ({"vocabulary": 3}, "states and vocabulary must be at least 4"),
        ({"min_strings": 1}, "min_strings must be at least 2"),
        ({"min_strings": 20}, "at most max_strings"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        InContextLanguages(**options)
