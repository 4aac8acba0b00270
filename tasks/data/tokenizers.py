"""Tokenizers: byte-level BPE, characters, bytes and symbols behind one interface.

Every id stands for a fixed string of bytes, so decoding, legible pieces and byte counts are the
same few lines for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from attention_zoo.errors import BadInput, UserError
from attention_zoo.zoo import unknown_name_message

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def check_ids(ids: Sequence[int] | np.ndarray, vocabulary_size: int, *, place: str) -> None:
    """Raises BadInput for the first id outside 0 … vocabulary_size - 1."""
    values = np.asarray(ids)
    wrong = values[(values < 0) | (values >= vocabulary_size)]
    if wrong.size:
        raise BadInput(
            f"token id {wrong[0]} in {place} is out of range: the tokenizer has {vocabulary_size} "
            f"ids (0 to {vocabulary_size - 1}); use the tokenizer that the ids were made with."
        )


class Tokenizer(ABC):
    """Text to token ids and back.

    Args:
        pieces: the bytes that each id stands for, special tokens (ids 0 to 3) included as b"".
    """

    pad_id, bos_id, eos_id, unk_id = PAD, BOS, EOS, UNK

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = list(pieces)
        self.vocabulary_size = len(self._pieces)
        self.token_bytes = [len(piece) for piece in self._pieces]

    @classmethod
    @abstractmethod
    def train(cls, lines: Iterable[str]) -> Self:
        """The tokenizer of a train split."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens.

        Raises BadInput for text that is not Unicode.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that `tokenizer_from_state` needs, in plain types."""

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """`encode` of many lines."""
        return [self.encode(line) for line in lines]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without `<pad>`, `<bos>` and `<eos>`.

        `<unk>`, and bytes that make no character, become U+FFFD. Raises BadInput for an id out of
        range.
        """
        ids = list(ids)
        check_ids(ids, self.vocabulary_size, place="the text to decode")
        unknown_name_message = REPLACEMENT.encode()
        parts = (unknown_name_message if token == UNK else self._pieces[token] for token in ids)
        return b"".join(parts).decode("utf-8", errors="replace")

    def tokens(self, ids: Iterable[int]) -> list[str]:
        r"""Legible pieces, one for each id, for figures.

        The space before a word is not shown; white space alone is shown as ␣ ⏎ ⇥; bytes that are
        a part of a character only are shown as `\xd0`.
        """
        ids = list(ids)
        check_ids(ids, self.vocabulary_size, place="the tokens to show")
        return [SPECIALS[token] if token <= UNK else legible(self._pieces[token]) for token in ids]


def legible(piece: bytes) -> str:
    """One piece as a figure shows it."""
    text = piece.decode("utf-8", errors="backslashreplace")
    if text.startswith(" ") and len(text) > 1:
        text = text[1:]
    return "".join(VISIBLE.get(character, character) for character in text)


def check_unicode(text: str) -> None:
    """Raises BadInput where `text` holds half of a surrogate pair, which no UTF-8 file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the text is not valid Unicode at character {error.start + 1} "
            f"({text[error.start]!r}); give it as UTF-8."
        ) from None


class BytePairTokenizer(Tokenizer):
    """Byte-level byte-pair encoding, by Hugging Face `tokenizers`.

    Sennrich et al. 2016, arXiv 1508.07909; alphabet and word pattern of GPT-2, Radford et al. 2019.
    Every text can be written and comes back exactly: there is no normalisation and no `<unk>`.
    Digits are tokens of their own, so that numbers are copied digit by digit.
    """

    def __init__(self, json: str) -> None:
        from tokenizers import Tokenizer as Backend

        self._json = json
        self._backend = Backend.from_str(json)
        letters = byte_letters()
        vocabulary = sorted(self._backend.get_vocab().items(), key=lambda item: item[1])
        super().__init__(
            [
                b"" if i <= UNK else bytes(letters[letter] for letter in piece)
                for piece, i in vocabulary
            ]
        )

    @classmethod
    def train(cls, lines: Iterable[str], *, vocabulary_size: int = 4000) -> Self:
        """Learns the merges of `lines`.

        Args:
            lines: the train split; source and target lines together give a joint vocabulary.
            vocabulary_size: ids at most, special tokens and the 256 bytes included.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, pre_tokenizers, trainers

        smallest = len(SPECIALS) + 256
        if vocabulary_size < smallest:
            raise UserError(
                f"vocabulary_size must be at least {smallest} (4 special tokens and 256 bytes), "
                f"got {vocabulary_size}."
            )
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        backend.train_from_iterator(
            lines,
            trainers.BpeTrainer(
                vocab_size=vocabulary_size,
                special_tokens=list(SPECIALS),
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        # A new backend, as training also makes the special tokens match in the text: "<pad>" in a
        # line would not come back. Without that, the word pattern keeps them from ever being made.
        trained = Backend(backend.model)
        trained.pre_tokenizer = backend.pre_tokenizer
        return cls(trained.to_str())

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return self._backend.encode(text).ids

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        for line in lines:
            check_unicode(line)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(lines)]

    def state(self) -> dict[str, Any]:
        return {"kind": "bpe", "json": self._json}


def byte_letters() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes.

    Printable Latin-1 stands for itself, the others are moved to U+0100 and above, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


class CharacterTokenizer(Tokenizer):
    """One id for each character of the train split; others are `<unk>`, which counts no bytes.

    Args:
        characters: the vocabulary, in the order of the ids from 4 on.
    """

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._ids = {character: len(SPECIALS) + place for place, character in enumerate(characters)}
        super().__init__([b""] * len(SPECIALS) + [character.encode() for character in characters])

    @classmethod
    def train(cls, lines: Iterable[str]) -> Self:
        characters: set[str] = set()
        for line in lines:
            check_unicode(line)
            characters.update(line)
        return cls("".join(sorted(characters)))

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return [self._ids.get(character, UNK) for character in text]

    def state(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": self._characters}


class ByteTokenizer(Tokenizer):
    """One id for each byte of the text's UTF-8: id = byte + 4. Nothing is learned."""

    def __init__(self) -> None:
        super().__init__([b""] * len(SPECIALS) + [bytes([byte]) for byte in range(256)])

    @classmethod
    def train(cls, lines: Iterable[str]) -> Self:
        """The same tokenizer for every train split: `lines` are not read."""
        return cls()

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return [byte + len(SPECIALS) for byte in text.encode()]

    def state(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class SymbolTokenizer(Tokenizer):
    """One id for each symbol of a diagnostic; text is symbols with white space between.

    Args:
        symbols: the vocabulary, in the order of the ids from 4 on.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._ids = {symbol: len(SPECIALS) + place for place, symbol in enumerate(symbols)}
        super().__init__([b""] * len(SPECIALS) + [f" {symbol}".encode() for symbol in symbols])

    @classmethod
    def train(cls, lines: Iterable[str]) -> Self:
        """The tokenizer of these symbols, a line each."""
        return cls(list(lines))

    def encode(self, text: str) -> list[int]:
        symbols = text.split()
        for symbol in symbols:
            if symbol not in self._ids:
                raise BadInput(unknown_name_message("symbol", symbol, shortened(self.symbols)))
        return [self._ids[symbol] for symbol in symbols]

    def state(self) -> dict[str, Any]:
        return {"kind": "symbols", "symbols": self.symbols}


def shortened(symbols: list[str], *, most: int = 20) -> list[str]:
    """The symbols, or where they are many the first and the last of them."""
    if len(symbols) <= most:
        return symbols
    return [*symbols[: most // 2], "…", *symbols[-most // 2 :]]


def tokenizer_from_state(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that gave `state`. Raises BadInput for a state of an unknown kind."""
    kinds = {
        "bpe": BytePairTokenizer,
        "characters": CharacterTokenizer,
        "bytes": ByteTokenizer,
        "symbols": SymbolTokenizer,
    }
    arguments = dict(state)
    kind = arguments.pop("kind", None)
    if kind not in kinds:
        raise BadInput(f"a tokenizer's state must be of kind {', '.join(kinds)}, got {kind!r}.")
    return kinds[kind](**arguments)


def given(lines: Iterable[str], *, state: dict[str, Any]) -> Tokenizer:
    """In place of a `train` factory: the tokenizer of a checkpoint, whatever the lines."""
    return tokenizer_from_state(state)
