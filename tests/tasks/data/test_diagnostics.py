"""Diagnostics ask queries that have an answer, in sequences that no two splits share."""

from collections.abc import Iterator
from dataclasses import fields, replace
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from attention_zoo.errors import BadInput, Unsupported, UserError
from attention_zoo.tasks.data.diagnostic_data import DiagnosticData
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, draw_distinct
from attention_zoo.tasks.data.diagnostics.copy import Copy
from attention_zoo.tasks.data.diagnostics.flip_flop import FlipFlop
from attention_zoo.tasks.data.diagnostics.in_context_languages import InContextLanguages
from attention_zoo.tasks.data.diagnostics.induction import Induction
from attention_zoo.tasks.data.diagnostics.mad_fuzzy_recall import MadFuzzyRecall
from attention_zoo.tasks.data.diagnostics.mad_memorization import MadMemorization
from attention_zoo.tasks.data.diagnostics.mad_recall import MadRecall
from attention_zoo.tasks.data.diagnostics.mad_selective_copy import MadSelectiveCopy
from attention_zoo.tasks.data.diagnostics.parity import Parity
from attention_zoo.tasks.data.diagnostics.recall import Recall
from attention_zoo.tasks.data.diagnostics.reverse import Reverse
from attention_zoo.tasks.data.tokenizers import FIRST_ID, ByteTokenizer, SymbolTokenizer
from tests.tasks.data.named_rows import named_rows

CONF = Path(__file__).parents[3] / "conf" / "data"
KINDS = {"recall": Recall, "copy": Copy, "reverse": Reverse, "induction": Induction}
KINDS |= {"flip_flop": FlipFlop, "parity": Parity, "mad_recall": MadRecall}
KINDS |= {"mad_fuzzy_recall": MadFuzzyRecall, "mad_selective_copy": MadSelectiveCopy}
KINDS |= {"mad_memorization": MadMemorization, "in_context_languages": InContextLanguages}
FEW: dict[str, Any] = {"size": 600, "valid": 40, "test": 40}
SMALL = {
    "recall": Recall(length=32, pairs=4, vocabulary=40, **FEW),
    "copy": Copy(length=6, min_length=3, vocabulary=10, **FEW),
    "reverse": Reverse(length=6, min_length=3, vocabulary=10, **FEW),
    "induction": Induction(length=20, vocabulary=12, **FEW),
    "flip_flop": FlipFlop(length=30, ignore_fraction=0.5, **FEW),
    "parity": Parity(length=20, min_length=3, **FEW),
    "mad_recall": MadRecall(length=20, **FEW),
    "mad_fuzzy_recall": MadFuzzyRecall(length=30, **FEW),
    "mad_selective_copy": MadSelectiveCopy(length=20, copied=4, **FEW),
    "mad_memorization": MadMemorization(length=10, vocabulary=30, **FEW),
    "in_context_languages": InContextLanguages(length=6, min_strings=4, max_strings=6, **FEW),
}
each = pytest.mark.parametrize("source", SMALL.values(), ids=SMALL)


@each
def test_sequences_start_with_bos_and_have_queries(source: Diagnostic) -> None:
    for symbols, answers in named_rows(source):
        assert symbols[0] == "<bos>" and "<bos>" not in symbols[1:] and "<unk>" not in symbols
        assert answers and max(answers) < len(symbols)


def test_recall_asks_each_key_once_for_its_value() -> None:
    for symbols, answers in named_rows(SMALL["recall"]):
        assert len(symbols) == 32
        pairs = dict(zip(symbols[1:9:2], symbols[2:9:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 4
        assert all(key[0] == "k" and value[0] == "v" for key, value in pairs.items())
        assert {symbols[position]: answer for position, answer in answers.items()} == pairs
        assert all(position >= 9 and position % 2 == 1 for position in answers)
        # Nothing else that is there is a key of the sequence: every answer is the only one.
        assert sum(symbol in pairs for symbol in symbols) == 8


def test_recall_fills_up_with_all_symbols_except_the_keys() -> None:
    source = Recall(length=16, pairs=2, vocabulary=8, size=2000)
    counts = dict.fromkeys(source.symbols, 0)
    for symbols, answers in named_rows(source):
        for position in {*range(5, 16)} - {*answers}:
            counts[symbols[position]] += 1
    # At 9 positions with 6 symbols each, a value is drawn at its full rate, a key at half of it.
    for symbol, count in counts.items():
        assert count / 2000 == pytest.approx(9 / 6 * (1 if symbol[0] == "v" else 0.5), rel=0.1)


def test_recall_asks_at_distances_of_a_power_law() -> None:
    """The authors' draw: without replacement, the g-th position with weight g^(power - 1)."""
    for power in (0.01, 1.0):
        source = Recall(length=40, pairs=1, vocabulary=64, power=power, size=20_000)
        positions = source.draw_split("train").target_positions[:, 0]
        counts = np.bincount((positions - 3) // 2, minlength=19)
        weights = np.arange(1, 20) ** (power - 1.0)
        expected = len(positions) * weights / weights.sum()
        assert len(counts) == 19
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_the_pairs_of_recall_grow_with_the_length() -> None:
    assert [Recall().with_length(length).pairs for length in (64, 128, 256)] == [4, 8, 16]
    assert Recall().with_length(128).draw_split("test").inputs.shape == (1000, 128)


@pytest.mark.parametrize("kind", ["copy", "reverse"])
def test_strings_are_repeated(kind: str) -> None:
    lengths = set()
    for symbols, answers in named_rows(SMALL[kind]):
        line = " ".join(symbols).removeprefix("<bos> ").partition(" <pad>")[0]
        string, again = (part.split() for part in line.split(" | "))
        assert again == (string if kind == "copy" else string[::-1])
        separator = 1 + len(string)
        assert symbols[separator] == "|"
        assert sorted(answers) == list(range(separator, separator + len(string) + 1))
        assert [answers[position] for position in sorted(answers)] == [*again, "<eos>"]
        lengths.add(len(string))
    assert lengths == {3, 4, 5, 6}
    longer = SMALL[kind].with_length(9)
    assert {symbols.index("|") for symbols, _ in named_rows(longer, "test")} == {10}


def test_induction_asks_for_what_followed_before() -> None:
    periods = set()
    for symbols, answers in named_rows(SMALL["induction"]):
        assert len(symbols) == 20
        first = next(
            position for position in range(2, 20) if symbols[position] in symbols[1:position]
        )
        assert sorted(answers) == list(range(first, 20))
        for position, answer in answers.items():
            before = [i for i in range(1, position) if symbols[i] == symbols[position]]
            assert {symbols[i + 1] for i in before} == {answer}
            assert position == 19 or symbols[position + 1] == answer
        periods.add(first - 1)
    assert periods == {5, 6, 7, 8, 9, 10}


def test_flip_flop_reads_what_was_written_last() -> None:
    kinds = []
    for symbols, answers in named_rows(SMALL["flip_flop"]):
        assert len(symbols) == 30 and (symbols[1], symbols[-1]) == ("w", "r")
        memory, read = "", {}
        for position in range(1, 30, 2):
            bit = symbols[position + 1] if position < 29 else None
            kinds.append(symbols[position])
            if symbols[position] == "w":
                memory = str(bit)
            elif symbols[position] == "r":
                read[position] = memory
                assert bit in (memory, None)
        assert answers == read
    assert 0.4 < kinds.count("i") / len(kinds) < 0.5  # Of the first and last there is none.


def test_parity_asks_after_every_bit_whether_the_ones_are_even() -> None:
    answered = []
    for symbols, answers in named_rows(SMALL["parity"]):
        assert len(symbols) == 21 and {*symbols[1:]} <= {"0", "1"}
        assert sorted(answers) == list(range(3, 21))
        for position, answer in answers.items():
            ones = symbols[1 : position + 1].count("1")
            assert answer == ("odd" if ones % 2 else "even")
        answered += answers.values()
    assert answered.count("odd") / len(answered) == pytest.approx(0.5, abs=0.02)
    longer = named_rows(SMALL["parity"].with_length(31), "test")
    assert all(len(symbols) == 32 and [*answers] == [31] for symbols, answers in longer)


@each
def test_no_sequence_is_in_two_splits_or_twice_in_one(source: Diagnostic) -> None:
    def content(source: Diagnostic, split: str) -> list[bytes]:
        return [tokens.tobytes() for tokens in source.draw_split(split).inputs]

    splits = {split: content(source, split) for split in ("train", "valid", "test")}
    assert [len(splits[split]) for split in splits] == [600, 40, 40]
    assert len(set().union(*splits.values())) == 680
    # With other seeds and sizes too.
    other = replace(source, size=40, valid=300, test=300, seed=7)
    assert not set(splits["train"]) & {*content(other, "valid"), *content(other, "test")}
    assert not set(content(other, "train")) & {*splits["valid"], *splits["test"]}


@each
def test_chance_is_the_best_guess_that_ignores_the_input(source: Diagnostic) -> None:
    generator = np.random.default_rng(0)
    first, second = (source.draw_rows(generator, 15_000).answers for _ in range(2))
    guess = np.bincount(first[first >= 0]).argmax()
    # The guess is made on other sequences than it is scored on.
    assert (second[second >= 0] == guess).mean() == pytest.approx(source.chance_accuracy, rel=0.1)


def test_more_sequences_than_there_are_are_refused() -> None:
    """There are 3 + 9 strings of up to two of three symbols."""
    everything = Copy(length=2, min_length=1, vocabulary=3, size=1, valid=1, test=1)
    train = [symbols for symbols, _ in named_rows(everything)]
    assert len(train) == 1
    with pytest.raises(UserError, match=r"train sequences of length 2 .* data\.source\.size=13"):
        Copy(length=2, min_length=1, vocabulary=3, size=13).draw_split("train")


@each
def test_the_seed_decides(source: Diagnostic) -> None:
    first, again = source.draw_split("train"), source.draw_split("train")
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    other = replace(source, seed=1)
    assert not np.array_equal(first.inputs, other.draw_split("train").inputs)
    assert source.cache_key() == replace(source).cache_key() != other.cache_key()


def test_distinct_numbers_are_distinct_and_uniform() -> None:
    generator = np.random.default_rng(0)
    drawn = draw_distinct(generator, rows=6000, count=3, choices=5)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 5 * 4 * 3
    assert np.abs(counts - 100).max() < 50
    everything = draw_distinct(generator, rows=50, count=5, choices=5)
    assert (np.sort(everything, axis=1) == np.arange(5)).all()


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: Recall(pairs=17), r"room for 4 tokens a pair, got pairs=17 and length=64"),
        (lambda: Recall(pairs=0), "at least 1 pair"),
        (lambda: Recall(vocabulary=9), "must be even"),
        (lambda: Recall(vocabulary=6), "a key and a value for each pair"),
        (lambda: Recall(size=0), "size must be at least 1, got 0"),
        (lambda: Copy(min_length=40), "min_length=40 and length=32"),
        (lambda: Reverse(vocabulary=0), "vocabulary must be at least 1"),
        (lambda: Parity(length=2), "min_length=3 and length=2"),
        (lambda: Induction(vocabulary=8), "vocabulary at least half of it"),
        (lambda: FlipFlop(length=7), "length must be even"),
        (lambda: FlipFlop(ignore_fraction=1.0), "ignore_fraction must be at least 0 and below 1"),
    ],
)
def test_impossible_options_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make()


def diagnostic(folder: Path, kind: str = "recall", **changes: Any) -> DiagnosticData:
    arguments = {"source": SMALL[kind], "tokenizer": SymbolTokenizer.train, "cache_dir": folder}
    data = DiagnosticData(**{**arguments, "batch_size": 16, **changes})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("kind", SMALL)
def test_batches_have_queries_and_every_length_a_test_set(kind: str, tmp_path: Path) -> None:
    source = SMALL[kind]
    data = diagnostic(tmp_path, kind, test_lengths=[24])
    assert data.test_names == ["test", "test@24"]
    train, valid = data.train_dataloader(), data.val_dataloader()
    tests = data.test_dataloader()
    assert [len(loader) for loader in (train, valid, *tests)] == [38, 3, 3, 3]
    batch = next(iter(train))
    assert batch.segment_ids is None
    assert len(batch.inputs) == len(batch.target_positions) == len(batch.targets) == 16
    asked = batch.targets != -100
    assert (batch.inputs.gather(1, batch.target_positions)[asked] >= FIRST_ID).all()
    lengths = [next(iter(loader)).inputs.shape[1] for loader in tests]
    assert lengths == [
        part.draw_split("test").inputs.shape[1] for part in (source, source.with_length(24))
    ]
    seen = torch.cat([batch.inputs for batch in train])
    assert {tuple(row) for row in seen.tolist()} == {
        tuple(row) for row in source.draw_split("train").inputs.tolist()
    }


def test_the_order_follows_seed_and_epoch(tmp_path: Path) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        loader = diagnostic(tmp_path, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch.inputs for batch in loader]).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)
    assert sorted(order(1, 0)) == sorted(order(2, 1))
    loader = diagnostic(tmp_path, seed=1).train_dataloader()
    loader.load_state_dict({"yielded_batches": 30, "world_size": 1})
    assert torch.cat([batch.inputs for batch in loader]).tolist() == order(1, 0)[30 * 16 :]


def test_an_example_has_the_mean_number_of_queries(tmp_path: Path) -> None:
    data = diagnostic(tmp_path, "flip_flop")
    example, batch = data.example_batch(), next(iter(data.train_dataloader()))
    asked = (data.rows["train"].answers >= 0).sum(1)
    assert example.inputs.shape == (1, batch.inputs.shape[1])
    assert example.targets.shape == example.target_positions.shape == (1, round(asked.mean()))
    assert min(asked) < example.targets.shape[1] < max(asked)


def test_the_report_has_the_accuracy_of_chance(tmp_path: Path) -> None:
    assert diagnostic(tmp_path, "copy").report["chance_accuracy"] == pytest.approx(2 / 11)
    assert diagnostic(tmp_path, "parity").report["chance_accuracy"] == 0.5


def test_report_fingerprint_and_cache(tmp_path: Path) -> None:
    data = diagnostic(tmp_path, test_lengths=[64])
    assert data.report["train"] == {"sequences": 600, "tokens": 600 * 32, "questions": 2400}
    assert data.report["test@64"] == {"sequences": 40, "tokens": 40 * 64, "questions": 40 * 8}
    again = diagnostic(tmp_path, test_lengths=[64], seed=5)
    assert again.fingerprint == data.fingerprint  # The order of the batches is no data.
    assert diagnostic(tmp_path).fingerprint != data.fingerprint
    assert len(list((tmp_path / "data").iterdir())) == 2


@pytest.mark.parametrize(
    "kind, tokens",
    [
        *(("recall", 1), ("copy", 6), ("reverse", 6), ("induction", 4), ("flip_flop", 1)),
        *(("parity", 1), ("mad_recall", 1), ("mad_fuzzy_recall", 3), ("mad_selective_copy", 1)),
        *(("mad_memorization", 1), ("in_context_languages", 1)),
    ],
)
def test_probes_are_first_queries(kind: str, tokens: int, tmp_path: Path) -> None:
    data = diagnostic(tmp_path, kind, answer_tokens=tokens)
    assert data.probe_references is not None
    assert len(data.probes) == len(data.probe_references) == 3
    for row, (line, answer) in enumerate(zip(data.probes, data.probe_references, strict=True)):
        symbols, answers = named_rows(SMALL[kind], "valid")[row]
        first = min(answers)
        assert line.split() == symbols[1 : first + 1]
        written = [answers[first + i] for i in range(tokens) if first + i in answers]
        assert answer.split() == [symbol for symbol in written if symbol != "<eos>"]
    chosen = diagnostic(tmp_path, kind, probes=[data.probes[0]])
    assert chosen.probes == data.probes[:1] and chosen.probe_references is None


def test_incompatible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="take the data that it was trained on"):
        diagnostic(tmp_path, tokenizer=ByteTokenizer.train)
    with pytest.raises(Unsupported, match="take the data that it was trained on"):
        diagnostic(tmp_path, tokenizer=lambda _: SymbolTokenizer(["k1", "v1"]))
    for lengths in ([32], [48, 48]):
        with pytest.raises(UserError, match=r"data\.test_lengths must differ"):
            diagnostic(tmp_path, test_lengths=lengths)
    with pytest.raises(UserError, match=r"data\.batch_size must be at least 1"):
        diagnostic(tmp_path, batch_size=0)
    with pytest.raises(BadInput, match="no symbol 'x'"):
        diagnostic(tmp_path, probes=["k1 x"])
    data = diagnostic(tmp_path, test_lengths=[64])
    data.check_max_length(64)
    with pytest.raises(UserError, match=r"got 64 tokens and 48; lower data\.test_lengths"):
        data.check_max_length(48)
    with pytest.raises(UserError, match=r"got 32 tokens and 16; lower data\.source\.length"):
        data.check_max_length(16)


@pytest.mark.parametrize("kind", KINDS)
def test_yaml_lists_every_option_with_its_default(kind: str) -> None:
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{kind}.yaml").source)
    assert isinstance(options, dict)
    assert options.pop("_target_").endswith(f".{kind}.{KINDS[kind].__name__}")
    options.pop("_convert_", None)
    key = KINDS[kind]().cache_key()
    assert options == {name: key[name] for name in key if name not in ("source", "numpy")}


def concrete_kinds(kind: type = Diagnostic) -> Iterator[type]:
    for inner in kind.__subclasses__():
        if not isabstract(inner):
            yield inner
        yield from concrete_kinds(inner)


@pytest.mark.parametrize("kind", sorted(set(concrete_kinds()), key=lambda x: x.__name__))
def test_values_of_another_type_are_refused_by_name(kind: type) -> None:
    wrong: dict[type, list[Any]] = {
        int: [None, "a", True, 1.5, [1], {}, float("nan"), float("inf")],
        float: [None, "a", True, [1], float("nan"), float("inf")],
        bool: [None, "a", 1],
        str: [None, 5, ["a"]],
    }
    for field in fields(kind):
        for value in wrong.get(field.type, []):
            with pytest.raises(UserError, match=f"^{field.name} must be"):
                kind(**{field.name: value})
    with pytest.raises(UserError, match="seed must be at least 0, got -1"):
        kind(seed=-1)
