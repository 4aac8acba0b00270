"""Arithmetic, groups, hops, sorting and SCAN: each answer is recomputed from its definition."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.data.diagnostics.addition import Addition
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, StringDiagnostic
from attention_zoo.tasks.data.diagnostics.depo import Depo
from attention_zoo.tasks.data.diagnostics.flip_flop import FlipFlop
from attention_zoo.tasks.data.diagnostics.mano import Mano
from attention_zoo.tasks.data.diagnostics.modular_arithmetic import ModularArithmetic
from attention_zoo.tasks.data.diagnostics.modular_arithmetic_brackets import (
    ModularArithmeticBrackets,
)
from attention_zoo.tasks.data.diagnostics.scan import Scan
from attention_zoo.tasks.data.diagnostics.sort import Sort
from attention_zoo.tasks.data.diagnostics.sum import Sum
from attention_zoo.tasks.data.diagnostics.word_problem import WordProblem
from tests.tasks.data.named_rows import named_rows
from tests.tasks.data.test_diagnostics import CONF, FEW, diagnostic

KINDS: dict[str, type[Diagnostic]] = {
    "modular_arithmetic": ModularArithmetic,
    "modular_arithmetic_brackets": ModularArithmeticBrackets,
    "word_problem": WordProblem,
    "mano": Mano,
    "depo": Depo,
    "addition": Addition,
    "sum": Sum,
    "sort": Sort,
    "scan": Scan,
}
SMALL: dict[str, Diagnostic] = {
    "modular_arithmetic": ModularArithmetic(length=11, **FEW),
    "modular_arithmetic_brackets": ModularArithmeticBrackets(length=14, **FEW),
    "word_problem": WordProblem(length=8, group="S3", **FEW),
    "mano": Mano(length=4, modulus=7, **FEW),
    "depo": Depo(length=9, max_hops=4, queries=5, letters=5, **FEW),
    "addition": Addition(length=4, **FEW),
    "sum": Sum(length=7, **FEW),
    "sort": Sort(length=7, vocabulary=9, **FEW),
    "scan": Scan(**FEW),
}
each = pytest.mark.parametrize("source", SMALL.values(), ids=SMALL)
each_string = pytest.mark.parametrize("kind", [kind for kind in SMALL if kind != "scan"])


def drawn(source: Diagnostic, count: int) -> list[tuple[list[str], dict[int, str]]]:
    """Return sequences of any split, like `named_rows`, with those that come again."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *source.symbols]
    parts = source.draw_rows(np.random.default_rng(3), count)
    return [
        (
            [names[token] for token in inputs],
            {
                at: names[answer]
                for at, answer in zip(positions, answers, strict=True)
                if answer >= 0
            },
        )
        for inputs, positions, answers in zip(*parts, strict=True)
    ]


def prompts(
    sequences: list[tuple[list[str], dict[int, str]]],
) -> list[tuple[list[str], list[str]]]:
    """Return each prompt and its answer, where an answer follows its prompt."""
    pairs = []
    for symbols, answers in sequences:
        first = min(answers)
        answer = [answers[position] for position in sorted(answers)]
        assert sorted(answers) == list(range(first, first + len(answer)))
        following = [symbol for symbol in symbols[first + 1 :] if symbol != "<pad>"]
        assert following == answer[:-1]
        pairs.append((symbols[1 : first + 1], answer))
    return pairs


def is_uniform(counts: Counter[Any], choices: int) -> bool:
    """Return whether no count is further than 5 standard deviations from an equal share."""
    expected = counts.total() / choices
    return len(counts) == choices and all(
        abs(count - expected) < 5 * expected**0.5 for count in counts.values()
    )


def test_modular_arithmetic_is_what_python_computes() -> None:
    source = SMALL["modular_arithmetic"]
    signs: Counter[str] = Counter()
    for prompt, answer in prompts(drawn(source, 3000)):
        assert re.fullmatch(r"[0-4]( [-+*] [0-4])* =", " ".join(prompt))
        assert answer == [str(eval("".join(prompt[:-1])) % 5)]
        signs.update(prompt[1:-1:2])
    assert is_uniform(signs, 3)
    longer = prompts(drawn(source.with_length(21), 99))
    assert {len(prompt) for prompt, _ in longer} == {22}


def test_brackets_hold_two_parts_of_any_length() -> None:
    """Every division of a length is equally frequent: one token at least goes to both sides."""
    source = ModularArithmeticBrackets(length=11, min_length=11)
    lefts: Counter[int] = Counter()
    for prompt, answer in prompts(drawn(source, 3000)):
        text = "".join(prompt[:-1])
        assert prompt[-1] == "=" and len(text) == 11
        assert answer == [str(eval(text) % 5)]
        depths = np.cumsum([(symbol == "(") - (symbol == ")") for symbol in text])
        # The operator between both parts has one open bracket, and a part before it.
        splits = [
            at
            for at in range(2, 10)
            if text[at] in "+-" and depths[at] == 1 and text[at - 1] not in "("
        ]
        lefts[splits[0] - 1] += 1
    assert is_uniform(lefts, 7)


def test_short_expressions_have_a_minus_brackets_or_both() -> None:
    source = ModularArithmeticBrackets(length=4, min_length=1)
    shapes = {re.sub(r"\d", "d", "".join(prompt)) for prompt, _ in prompts(drawn(source, 99))}
    assert shapes == {"d=", "-d=", "(d)=", "(-d)="}


def compose(p: str, q: str) -> str:
    """Return the permutation that applies q first, as in the library of Merrill et al."""
    return "".join(p[int(image) - 1] for image in q)


@pytest.mark.parametrize("group, size", [("S3", 6), ("A4", 12), ("S5", 120), ("A5", 60)])
def test_words_of_permutations_are_composed_from_the_left(group: str, size: int) -> None:
    source = WordProblem(group=group, length=9, min_length=1, **FEW)
    everything = {"".join(p) for p in permutations("12345"[: int(group[1])])}
    if group[0] == "A":  # Even: a product of squares.
        everything = {compose(p, p) for p in everything} | {
            compose(compose(p, p), compose(q, q)) for p in everything for q in everything
        }
    assert set(source.symbols) == everything and len(everything) == size
    for symbols, answers in named_rows(source):
        assert sorted(answers) == list(range(1, 10))
        for position, answer in answers.items():
            assert answer == reduce(compose, symbols[1 : position + 1])


def test_words_of_numbers_are_added_and_those_of_products_multiplied_by_parts() -> None:
    for symbols, answers in named_rows(WordProblem(group="Z60", length=9, **FEW)):
        assert sorted(answers) == list(range(2, 10))
        for position, answer in answers.items():
            assert int(answer) == sum(map(int, symbols[1 : position + 1])) % 60
    source = WordProblem(group="A4_x_Z5", length=9, **FEW)
    assert len(source.symbols) == 60
    for symbols, answers in named_rows(source):
        for position, answer in answers.items():
            parts = [symbol.split(".") for symbol in symbols[1 : position + 1]]
            permutation = reduce(compose, (part[0] for part in parts))
            assert answer == f"{permutation}.{sum(int(part[1]) for part in parts) % 5}"


def test_longer_words_ask_for_the_last_product_alone() -> None:
    longer = named_rows(SMALL["word_problem"].with_length(30), "test")
    assert all(len(symbols) == 31 and [*answers] == [30] for symbols, answers in longer)


def evaluate_prefix(symbols: list[str], modulus: int) -> int:
    """Return the value of an expression in prefix notation, read from its end with a stack."""
    stack: list[int] = []
    for symbol in reversed(symbols):
        if symbol.isdecimal():
            stack.append(int(symbol))
        else:
            one, two = stack.pop(), stack.pop()
            stack.append({"+": one + two, "-": one - two, "*": one * two}[symbol] % modulus)
    (value,) = stack
    return value


def test_mano_names_the_number_of_operators_and_asks_for_the_value() -> None:
    lengths: Counter[int] = Counter()
    first_operands: Counter[int] = Counter()
    for prompt, answer in prompts(drawn(Mano(length=4, modulus=7), 4000)):
        operators = sum(symbol in "+-*" for symbol in prompt)
        assert (prompt[0], prompt[-1], len(prompt)) == (f"n{operators}", "=", 3 + 2 * operators)
        assert answer == [str(evaluate_prefix(prompt[1:-1], 7))]
        lengths[operators] += 1
        if operators == 4:
            first_operands[size_of_first_operand(prompt[2:-1])] += 1
    assert is_uniform(lengths, 4)
    assert is_uniform(first_operands, 4)


def size_of_first_operand(symbols: list[str]) -> int:
    """Return the operators of the expression that `symbols` start with."""
    missing, operators = 1, 0
    for symbol in symbols:
        operators += symbol in "+-*"
        missing += 1 if symbol in "+-*" else -1
        if not missing:
            break
    return operators


def test_depo_asks_for_the_node_some_hops_along_the_cycle() -> None:
    sizes: Counter[int] = Counter()
    hops: Counter[str] = Counter()
    for symbols, answers in drawn(SMALL["depo"], 3000):
        text = " ".join(symbols[1:]).replace("<pad>", "").strip()
        graph, *queries = re.split(r" (?=k\d)", text)
        names = re.findall(r"(?:\d )?\d\.", graph)
        next_node = dict(zip(names[::2], names[1::2], strict=True))
        nodes = len(next_node)
        assert len(names) == 2 * nodes and {*names} == {*next_node}
        node, seen = names[0], set()
        while node not in seen:
            seen.add(node)
            node = next_node[node]
        assert len(seen) == nodes  # One cycle.
        asked = []
        for query in queries:
            k, start, reached = re.fullmatch(  # type: ignore[union-attr]
                r"k(\d) ((?:\d )?\d\.) = ((?:\d )?\d\.)", query
            ).groups()
            assert reached == reduce(lambda node, _: next_node[node], range(int(k)), start)
            asked.append(start)
            hops[k] += 1
        assert len(asked) == len({*asked}) == min(5, nodes)
        # The tokens of the answers, and nothing else, are predicted.
        predicted = [symbols[position + 1] for position in sorted(answers)]
        assert predicted == [answers[position] for position in sorted(answers)]
        assert " ".join(predicted) == " ".join(query.split(" = ")[1] for query in queries)
        sizes[nodes] += 1
    assert is_uniform(hops, 4)
    weights = {n: 1 / (n + 3) for n in range(3, 10)}
    for nodes, weight in weights.items():
        expected = 3000 * weight / sum(weights.values())
        assert abs(sizes[nodes] - expected) < 5 * expected**0.5


def test_the_longest_cycles_and_hops_can_be_tested_alone() -> None:
    source = replace(SMALL["depo"], min_length=9, min_hops=4)
    for symbols, _ in named_rows(source, "test"):
        assert {symbol for symbol in symbols if symbol[0] == "k"} == {"k4"}
        assert symbols.index("k4") >= 1 + 2 * 9


def test_addition_is_what_python_computes() -> None:
    lengths: Counter[tuple[int, int]] = Counter()
    for prompt, answer in prompts(drawn(Addition(length=4, min_length=3), 2000)):
        one, two = "".join(prompt).removesuffix("=").split("+")
        assert "".join(answer) == f"{int(one) + int(two)}<eos>"
        assert "0" not in (one[0], two[0])
        lengths[len(one), len(two)] += 1
    assert is_uniform(lengths, 4)
    short = {prompt[0] for prompt, _ in prompts(drawn(Addition(length=1), 99))}
    assert "0" in short  # A number of one digit may be 0.


def test_sums_and_sorted_lists_are_what_python_computes() -> None:
    for prompt, answer in prompts(named_rows(SMALL["sum"])):
        numbers = "".join(prompt).removesuffix("=").split("+")
        assert 2 <= len(numbers) <= 7 and "0" not in numbers
        assert answer == [str(sum(map(int, numbers)) % 10)]
    lengths = set()
    for prompt, answer in prompts(named_rows(SMALL["sort"])):
        assert prompt[-1] == "|" and answer == [*sorted(prompt[:-1]), "<eos>"]
        lengths.add(len(prompt) - 1)
    assert lengths == {2, 3, 4, 5, 6, 7}


def interpret(command: str) -> str:
    """Return the actions of a SCAN command by the rules of Lake and Baroni, from the outside."""
    for word, order in ((" and ", 1), (" after ", -1)):
        if word in command:
            return " ".join([interpret(part) for part in command.split(word)][::order])
    for word, count in ((" twice", 2), (" thrice", 3)):
        if command.endswith(word):
            return " ".join([interpret(command.removesuffix(word))] * count)
    verb, *manner = command.split()
    action = [] if verb == "turn" else [f"I_{verb.upper()}"]
    turn = [f"I_TURN_{manner[-1].upper()}"] if manner else []
    if manner[:1] == ["around"]:
        return " ".join((turn + action) * 4)
    return " ".join(turn * (2 if manner[:1] == ["opposite"] else 1) + action)


def test_scan_has_the_published_commands_and_counts() -> None:
    """There are 16,990 commands of up to 22 actions, and 3,920 longer ones."""
    source = Scan(size=16_145, valid=845, test=3920)
    for split in ("train", "valid", "test"):
        pairs = prompts(named_rows(source, split))
        for prompt, answer in pairs:
            assert prompt[-1] == "|" and answer[-1] == "<eos>"
            assert interpret(" ".join(prompt[:-1])) == " ".join(answer[:-1])
        lengths = {len(answer) - 1 for _, answer in pairs}
        assert min(lengths) > 22 if split == "test" else max(lengths) == 22
    assert len({tuple(prompt) for prompt, _ in pairs}) == 3920
    assert len(named_rows(Scan(train_length=25, size=1, valid=1, test=3136), "test")) == 3136
    with pytest.raises(UserError, match=r"data\.source\.test must be at most the 3,920 commands"):
        replace(source, test=3921).draw_split("test")


CHANCES: dict[str, Callable[[], Diagnostic]] = {
    **{name: lambda source=source: source for name, source in SMALL.items() if name != "scan"},
    "S5": lambda: WordProblem(group="S5", length=3),
    "one number": lambda: ModularArithmetic(length=1, modulus=3),
    "one addition": lambda: Addition(length=1),
    "two numbers": lambda: Sum(length=2, min_length=2),
    "long names": lambda: Depo(length=9, letters=3, min_letters=3, max_letters=4),
}


@pytest.mark.parametrize("make", CHANCES.values(), ids=CHANCES)
def test_the_chance_level_is_the_share_of_the_most_frequent_answer(
    make: Callable[[], Diagnostic],
) -> None:
    source = make()
    answers = source.draw_rows(np.random.default_rng(7), 4000).answers
    counts = Counter(answers[answers >= 0].tolist())
    most, total = counts.most_common(1)[0][1], counts.total()
    chance = source.chance_accuracy  # type: ignore[attr-defined]
    # Of many equally frequent answers, the largest count is above its mean.
    assert abs(most / total - chance) < 5 * (chance / total) ** 0.5 + 0.002


def test_the_chance_level_of_products_is_that_of_all_expressions() -> None:
    """All 3 · 3² and 3 + 3 · 3² expressions of up to one operator, counted one by one."""
    numbers = range(3)
    values = [
        [number for number in numbers],
        [x % 3 for a, b in product(numbers, numbers) for x in (a + b, a - b, a * b)],
    ]
    shares = [Counter(part)[0] / len(part) for part in values]
    assert ModularArithmetic(length=3, modulus=3).chance_accuracy == pytest.approx(np.mean(shares))
    assert Mano(length=1, modulus=3).chance_accuracy == pytest.approx(shares[1])
    longer = ModularArithmetic(length=5, min_length=5, modulus=3)
    all_values = [
        eval(f"{a}{p}{b}{q}{c}") % 3
        for a, b, c in product(numbers, repeat=3)
        for p, q in product("+-*", repeat=2)
    ]
    assert longer.chance_accuracy == pytest.approx(Counter(all_values)[0] / len(all_values))


def test_the_chance_level_of_scan_is_that_of_its_test() -> None:
    counts = Counter(token for _, answer in prompts(named_rows(Scan(), "test")) for token in answer)
    expected = counts.most_common(1)[0][1] / counts.total()
    assert Scan().chance_accuracy == pytest.approx(expected)


@each
def test_no_sequence_is_in_two_splits_or_twice_in_one(source: Diagnostic) -> None:
    splits = [
        [tokens.tobytes() for tokens in source.draw_split(split).inputs]
        for split in ("train", "valid", "test")
    ]
    assert [len(split) for split in splits] == [600, 40, 40]
    assert len({*splits[0], *splits[1], *splits[2]}) == 680


@each_string
def test_other_seeds_sizes_and_lengths_do_not_leak(kind: str) -> None:
    """A sequence has the same split among longer ones, in whose rows it is padded."""
    source = SMALL[kind]
    assert isinstance(source, StringDiagnostic)

    def contents(source: Diagnostic, split: str) -> set[bytes]:
        return {tokens[tokens > 0].tobytes() for tokens in source.draw_split(split).inputs}

    train = contents(source, "train")
    longest = replace(source, min_length=source.length)
    shorter = replace(source.with_length(source.length - 2), test=20)
    for other in (replace(source, seed=7), longest, shorter):
        assert not train & contents(other, "test")


@each
def test_the_seed_decides(source: Diagnostic) -> None:
    first, again = source.draw_split("valid"), source.draw_split("valid")
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first.inputs, replace(source, seed=1).draw_split("valid").inputs)


def test_few_short_words_are_refused_where_they_run_out() -> None:
    """There are 3 · 3 words of two elements of Z3."""
    with pytest.raises(UserError, match=r"train sequences of length 2 .* data\.source\.size=10"):
        WordProblem(group="Z3", length=2, size=10).draw_split("train")


@pytest.mark.parametrize("kind", KINDS)
def test_yaml_lists_every_option_with_its_default(kind: str) -> None:
    data = OmegaConf.load(CONF / f"{kind}.yaml")
    options = OmegaConf.to_container(data.source)
    assert isinstance(options, dict)
    assert options.pop("_target_").endswith(f".{kind}.{KINDS[kind].__name__}")
    key = KINDS[kind]().cache_key()
    assert options == {name: key[name] for name in key if name not in ("source", "numpy")}
    assert data.test_variants is None


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: ModularArithmetic(length=8), "must be odd, .* length=8 and min_length=1"),
        (lambda: ModularArithmetic(min_length=2), "must be odd"),
        (lambda: ModularArithmetic(modulus=1), "modulus must be at least 2, got 1"),
        (lambda: ModularArithmeticBrackets(modulus=0), "modulus must be at least 2, got 0"),
        (lambda: WordProblem(group="D4"), "S3 to S6, .* got D4"),
        (lambda: WordProblem(group="S7"), "S3 to S6, .* got S7"),
        (lambda: WordProblem(group="A4_x_"), "got A4_x_"),
        (lambda: WordProblem(group="S6_x_Z2"), "at most 1000 elements, got S6_x_Z2"),
        (lambda: WordProblem(group="Z1001"), "got Z1001"),
        (lambda: Mano(modulus=1), "modulus must be at least 2"),
        (lambda: Mano().with_length(11), "data.source.length=10, got 11"),
        (lambda: Depo(min_hops=9), "min_hops=9 and max_hops=8"),
        (lambda: Depo(min_letters=0), "min_letters=0"),
        (lambda: Depo(letters=9, max_letters=1), "9 names and length=50; give more letters"),
        (lambda: Depo(queries=0), "queries must be at least 1"),
        (lambda: Scan(train_length=48), "train_length=48 and length=48"),
        (lambda: Scan(length=49), "at most 48"),
        (lambda: Scan().with_length(30), "no other lengths to test at, got 30"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make()


def test_variants_are_tests_with_other_options(tmp_path: Any) -> None:
    source = FlipFlop(length=60, ignore_fraction=0.5, **FEW)
    variants = {"sparse": {"ignore_fraction": 0.9}, "dense": {"ignore_fraction": 0.1, "test": 80}}
    data = diagnostic(tmp_path, source=source, test_lengths=[24], test_variants=variants)
    assert data.test_names == ["test", "test@24", "test@sparse", "test@dense"]
    loaders = dict(zip(data.test_names, data.test_dataloader(), strict=True))
    reads = {
        name: float(np.mean([(batch.targets >= 0).sum(1).float().mean() for batch in loader]))
        for name, loader in loaders.items()
    }
    assert reads["test@sparse"] < reads["test"] < reads["test@dense"]
    assert [len(loaders[name]) for name in ("test@sparse", "test@dense")] == [3, 5]
    trained = {tokens.tobytes() for tokens in data.rows["train"].inputs}
    assert not trained & {tokens.tobytes() for tokens in data.rows["test@sparse"].inputs}


def test_a_renamed_variant_is_not_read_from_the_cache_under_its_old_name(tmp_path: Any) -> None:
    source = FlipFlop(length=60, **FEW)
    for name in ("one", "two"):
        variants = {name: {"ignore_fraction": 0.5}}
        data = diagnostic(tmp_path, source=source, test_variants=variants)
        assert data.test_names == ["test", f"test@{name}"]


@pytest.mark.parametrize(
    "variants, reason",
    [
        ({"sparse": {"ignored": 0.9}}, r"sparse must hold options of FlipFlop \(length, .*ignored"),
        ({"sparse": {"ignore_fraction": 1.0}}, "ignore_fraction must be at least 0 and below 1"),
        ({"12": {"ignore_fraction": 0.9}}, "names of letters, digits and _, .* got '12'"),
        ({"a/b": {}}, "got 'a/b'"),
    ],
)
def test_variants_that_cannot_be_told_or_drawn_are_refused(
    variants: Any, reason: str, tmp_path: Any
) -> None:
    with pytest.raises(UserError, match=reason):
        diagnostic(tmp_path, source=FlipFlop(length=60, **FEW), test_variants=variants)


def test_a_variant_has_the_symbols_that_are_trained_on(tmp_path: Any) -> None:
    options = {"source": WordProblem(group="S3", **FEW)}
    with pytest.raises(UserError, match=r"S4 must have the symbols that are trained on"):
        diagnostic(tmp_path, test_variants={"S4": {"group": "S4"}}, **options)
    with pytest.raises(Unsupported, match="no other lengths to test at"):
        diagnostic(tmp_path, source=Scan(**FEW), test_lengths=[30])
