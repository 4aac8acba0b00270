import json
import os
import random
import subprocess
import sys

import pytest

from attention_zoo.errors import BadInput, Unsupported, UserError
from attention_zoo.tasks.data.tokenizers import (
    MAX_WORD_BYTES,
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SymbolTokenizer,
    check_state,
    tokenizer_from_state,
)

LINES = [
    "Wednesday, March 4, 2026",
    "quarta-feira, 4 de março de 2026",
    "Привет, мир! Как дела?",
    "Straße — naïve “quotes”…",
    "日本語のテキスト",
    "emoji 👩‍👩‍👧 and <pad> <bos> <eos> <unk>",
    "  spaces   and\ttabs\nand lines\n\n\n  end ",
    "",
]
KINDS = {
    "bpe": BytePairTokenizer.train(LINES * 5, vocabulary_size=400),
    "characters": CharacterTokenizer.train(LINES),
    "bytes": ByteTokenizer.train(LINES),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", LINES)
def test_text_comes_back_and_its_bytes_sum_up(kind: str, line: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == line
    assert tokenizer.decode([0, 1, *ids, 2, 0]) == line
    assert sum(tokenizer.token_bytes[token] for token in ids) == len(line.encode())
    assert all(4 <= token < tokenizer.vocabulary_size for token in ids)
    assert len(tokenizer.token_bytes) == tokenizer.vocabulary_size
    assert tokenizer.token_bytes[:4] == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_many_lines_encode_as_each_line(kind: str) -> None:
    tokenizer = KINDS[kind]
    assert tokenizer.encode_lines(LINES) == [tokenizer.encode(line) for line in LINES]


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_plain_and_makes_the_same_tokenizer(kind: str) -> None:
    tokenizer = KINDS[kind]
    again = tokenizer_from_state(json.loads(json.dumps(tokenizer.state())))
    assert type(again) is type(tokenizer)
    assert again.encode_lines(LINES) == tokenizer.encode_lines(LINES)
    assert again.token_bytes == tokenizer.token_bytes


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_any_unicode_text_comes_back(kind: str) -> None:
    tokenizer = KINDS[kind]
    generator = random.Random(0)
    planes = [(0x20, 0x7F), (0xA0, 0x500), (0x3040, 0x9FFF), (0x1F300, 0x1FAFF), (0x80, 0xA0)]
    for _ in range(300):
        text = "".join(chr(generator.randint(*generator.choice(planes))) for _ in range(20))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(tokenizer.token_bytes[token] for token in ids) == len(text.encode())


@pytest.mark.parametrize(
    "name",
    [
        "tatoeba-en-pt/valid.pt.gz",
        "tatoeba-en-de/valid.de.gz",
        "tatoeba-en-ru/valid.ru.gz",
        "multi30k/raw/val.en.gz",
        "wmt-news-en-de/newstest2009.de.gz",
    ],
)
def test_real_text_comes_back_and_its_bytes_sum_up(name: str, real_lines) -> None:
    lines = real_lines(name)[:1000]
    for tokenizer in (
        BytePairTokenizer.train(lines[::2], vocabulary_size=1000),
        CharacterTokenizer.train(lines),
        ByteTokenizer.train(lines),
    ):
        for line, ids in zip(lines, tokenizer.encode_lines(lines), strict=True):
            assert tokenizer.decode(ids) == line
            assert sum(tokenizer.token_bytes[token] for token in ids) == len(line.encode())


def test_pieces_are_legible() -> None:
    bpe = KINDS["bpe"]
    pieces = bpe.tokens(bpe.encode("quarta-feira, 4 de março"))
    assert "".join(pieces).replace("␣", "") == "quarta-feira,4demarço"
    assert "Ġ" not in "".join(pieces)
    assert bpe.tokens([0, 1, 2, 3]) == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert ByteTokenizer().tokens(ByteTokenizer().encode("aп \n")) == [
        "a",
        "\\xd0",
        "\\xbf",
        "␣",
        "⏎",
    ]


def test_digits_are_copied_one_by_one() -> None:
    tokenizer = BytePairTokenizer.train(["in 2026"] * 50, vocabulary_size=300)
    assert tokenizer.tokens(tokenizer.encode("2026")) == ["2", "0", "2", "6"]


def test_unknown_characters_are_shown_and_count_no_bytes() -> None:
    tokenizer = CharacterTokenizer.train(["abc"])
    ids = tokenizer.encode("aЖb")
    assert ids == [4, 3, 5]
    assert tokenizer.decode(ids) == "a\ufffdb"
    assert sum(tokenizer.token_bytes[token] for token in ids) == 2


def test_symbols_are_words() -> None:
    tokenizer = SymbolTokenizer.train(["k1", "k2", "v1", "|"])
    assert tokenizer.encode("k2 v1  |\nk1") == [5, 6, 7, 4]
    assert tokenizer.decode([1, 5, 6, 2]) == " k2 v1"
    assert tokenizer.tokens([1, 5, 7]) == ["<bos>", "k2", "|"]
    again = tokenizer_from_state(json.loads(json.dumps(tokenizer.state())))
    assert again.encode("k1 |") == [4, 7]
    with pytest.raises(BadInput, match=r"no symbol 'k3'. Choices: k1, k2, v1, \|"):
        tokenizer.encode("k1 k3")
    many = SymbolTokenizer.train([str(number) for number in range(9000)])
    with pytest.raises(BadInput, match=r"Choices: 0, 1, .*9, …, 8990, .*8999\.$"):
        many.encode("9000")


def test_a_part_of_a_character_decodes_to_the_replacement_character() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("п")[:1]) == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_out_of_range_are_refused(kind: str) -> None:
    tokenizer = KINDS[kind]
    for wrong in (-1, tokenizer.vocabulary_size):
        with pytest.raises(BadInput, match=f"token id {wrong} at index 1 is out of range"):
            tokenizer.decode([5, wrong])
        with pytest.raises(BadInput, match="at index 0 is out of range"):
            tokenizer.tokens([wrong])


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="not valid Unicode at character 3"):
        KINDS[kind].encode("ab\udc80")


def test_impossible_vocabulary_sizes_and_states_are_refused() -> None:
    with pytest.raises(UserError, match=r"at least 260 .* got 100"):
        BytePairTokenizer.train(["a"], vocabulary_size=100)
    with pytest.raises(BadInput, match="bpe, characters, bytes, symbols, got 'words'"):
        tokenizer_from_state({"kind": "words"})


def test_a_tokenizer_that_would_come_back_as_another_is_refused() -> None:
    class Lower(CharacterTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.lower())

    check_state(CharacterTokenizer.train(["ab"]))
    with pytest.raises(Unsupported, match="Lower has the state of CharacterTokenizer"):
        check_state(Lower.train(["ab"]))


def test_merges_are_the_same_in_every_process() -> None:
    script = """
import hashlib, random
from attention_zoo.tasks.data.tokenizers import BytePairTokenizer
words = ["um", "dois", "tres", "cat", "dog", "mat"]
generator = random.Random(1)
lines = [" ".join(generator.choices(words, k=6)) for _ in range(99)]
state = BytePairTokenizer.train(lines, vocabulary_size=330).state()
print(hashlib.sha256(state["json"].encode()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("letters", ["ACGT", "".join(map(chr, range(0x4E00, 0x5600)))])
def test_a_text_without_white_space_is_learnt_and_encoded_at_once(letters: str) -> None:
    text = "".join(random.Random(0).choices(letters, k=300_000))
    tokenizer = BytePairTokenizer.train([text], vocabulary_size=1000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_are_cut_only_where_they_are_too_long() -> None:
    word = "ACGT" * (MAX_WORD_BYTES // 4)
    tokenizer = BytePairTokenizer.train([word], vocabulary_size=500)
    assert tokenizer.encode(word) == tokenizer.encode(word * 2)[: len(tokenizer.encode(word))]
    assert max(tokenizer.token_bytes) == MAX_WORD_BYTES
