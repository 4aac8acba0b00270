"""Tokenizers of bytes, characters, symbols, and byte-level BPE: each id is a string of bytes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, Self

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from attention_zoo.errors import BadInput, Unsupported, UserError, check_positive, short_repr
from attention_zoo.zoo import unknown_name_message

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
FIRST_ID = len(SPECIAL_TOKENS)  # of the tokens that are not special
REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
MAX_WORD_BYTES = 1000
MOST_TOKENS = 10_000_000  # that are learnt; the backend reserves memory for them
VISIBLE_SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def check_unicode(text: str) -> None:
    """Raise BadInput if `text` is no text, or holds half of a surrogate pair, as UTF-8 cannot."""
    if not isinstance(text, str):
        raise BadInput(f"text must be a str, got {short_repr(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the text is not valid Unicode at character {error.start + 1} "
            f"({text[error.start]!r}); give it as UTF-8."
        ) from None


class Tokenizer(ABC):
    """Encodes text to token ids and decodes them.

    Args:
        pieces: the bytes of each id, from `FIRST_ID` on; those before are special tokens.
    """

    pad_id, bos_id, eos_id, unk_id = PAD, BOS, EOS, UNK

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = [b"", b"", b"", REPLACEMENT_CHARACTER.encode(), *pieces]
        self.vocabulary_size = len(self._pieces)
        self.token_bytes = [0] * FIRST_ID + [len(piece) for piece in self._pieces[FIRST_ID:]]

    @classmethod
    @abstractmethod
    def train(cls, lines: Iterable[str]) -> Self:
        """Return the tokenizer of a train split."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens, or raise BadInput."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all that `tokenizer_from_state` needs, in plain types."""

    def unknown_characters(self, text: str) -> str:
        """Return the characters that become `<unk>`."""
        return ""

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode many lines."""
        return [self.encode(line) for line in lines]

    def encode_each(self, lines: Sequence[str]) -> Iterator[list[int]]:
        """Yield the ids of each line; 10,000 at a time, as lists of ids take much memory."""
        for start in range(0, len(lines), 10_000):
            yield from self.encode_lines(lines[start : start + 10_000])

    def check_ids(self, ids: Iterable[int]) -> list[int]:
        """Return the ids as a list. Raise BadInput for the first one that is out of range."""
        if not isinstance(ids, Iterable):
            raise BadInput(f"ids must be a list of token ids, got {short_repr(ids)}.")
        ids = list(ids)
        for index, token in enumerate(ids):
            if not isinstance(token, Integral):
                raise BadInput(f"token ids must be whole numbers, got {short_repr(token)}.")
            if not 0 <= token < self.vocabulary_size:
                raise BadInput(
                    f"token id {token} at index {index} is out of range: the tokenizer has "
                    f"{self.vocabulary_size} ids (0 to {self.vocabulary_size - 1}); use the "
                    "tokenizer that the ids were made with."
                )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without `<pad>`, `<bos>` and `<eos>`.

        `<unk>`, and bytes that make no character, become U+FFFD.
        """
        pieces = [self._pieces[token] for token in self.check_ids(ids)]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def tokens(self, ids: Iterable[int]) -> list[str]:
        r"""Return a readable string for each id, for figures.

        The space before a word is not shown. White space alone is shown as ␣ ⏎ ⇥, and bytes that
        are only a part of a character as `\xd0`.
        """
        return [
            SPECIAL_TOKENS[token] if token < FIRST_ID else readable_token(self._pieces[token])
            for token in self.check_ids(ids)
        ]


def readable_token(piece: bytes) -> str:
    """Return a piece as figures show it."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return (text.removeprefix(" ") or text).translate(VISIBLE_SPACES)


class BytePairTokenizer(Tokenizer):
    """Byte-level byte-pair encoding, by Hugging Face `tokenizers`.

    Sennrich et al. 2016, arXiv 1508.07909; alphabet and word pattern of GPT-2, Radford et al. 2019.
    Every text can be encoded and comes back exactly: there is no normalisation and no `<unk>`.
    Digits are tokens of their own, so that numbers are copied digit by digit. A run without white
    space is cut every `MAX_WORD_BYTES`: learning takes the square of the longest word.
    """

    def __init__(self, json: str) -> None:
        self._json = json
        self._backend = Backend.from_str(json)
        alphabet = byte_alphabet()
        vocabulary = self._backend.get_vocab()
        pieces = sorted(vocabulary, key=vocabulary.__getitem__)[FIRST_ID:]
        super().__init__(bytes(alphabet[letter] for letter in piece) for piece in pieces)

    @classmethod
    def train(cls, lines: Iterable[str], *, vocabulary_size: int = 4000) -> Self:
        """Learn the merges from `lines`, up to a vocabulary with special tokens and 256 bytes."""
        check_positive(vocabulary_size=vocabulary_size)
        min_size = FIRST_ID + 256
        if vocabulary_size < min_size:
            raise UserError(
                f"vocabulary_size must be at least {min_size} (4 special tokens and 256 bytes), "
                f"got {vocabulary_size}."
            )
        if vocabulary_size > MOST_TOKENS:
            raise UserError(
                f"vocabulary_size must be at most {MOST_TOKENS:,}, got {vocabulary_size:,}."
            )
        backend = Backend(models.BPE())
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        cut = pre_tokenizers.FixedLength(length=MAX_WORD_BYTES)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level, cut])
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=byte_level.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(lines, trainer)
        # Training also makes the special tokens match in text: a line with "<pad>" would not come
        # back. A new backend does not match them, and the word pattern keeps them apart.
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


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's letters for the 256 bytes.

    Printable Latin-1 stands for itself; the other bytes are moved to U+0100 and above, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {chr(code): byte for code, byte in enumerate(others, start=256)}
    return {chr(byte): byte for byte in printable} | moved


class CharacterTokenizer(Tokenizer):
    """One id for each character of the train split; others are `<unk>`, which counts no bytes."""

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._ids = {character: i for i, character in enumerate(characters, start=FIRST_ID)}
        super().__init__(character.encode() for character in characters)

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

    def unknown_characters(self, text: str) -> str:
        return "".join(character for character in text if character not in self._ids)

    def state(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": self._characters}


class ByteTokenizer(Tokenizer):
    """One id for each byte of the text's UTF-8: id = byte + 4. Nothing is learned."""

    def __init__(self) -> None:
        super().__init__(bytes([byte]) for byte in range(256))

    @classmethod
    def train(cls, lines: Iterable[str]) -> Self:
        """Return the same tokenizer for every train split; `lines` are not read."""
        return cls()

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return [byte + FIRST_ID for byte in text.encode()]

    def state(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class SymbolTokenizer(Tokenizer):
    """One id for each symbol of a diagnostic; in text, white space separates symbols."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(symbols, start=FIRST_ID)}
        super().__init__(f" {symbol}".encode() for symbol in symbols)

    @classmethod
    def train(cls, lines: Iterable[str]) -> Self:
        """Return the tokenizer of these symbols, one in each line."""
        return cls(list(lines))

    def encode(self, text: str) -> list[int]:
        symbols = text.split()
        for symbol in symbols:
            if symbol not in self._ids:
                choices = self.symbols
                if len(choices) > 20:
                    choices = [*choices[:10], "…", *choices[-10:]]
                raise BadInput(unknown_name_message("symbol", symbol, choices))
        return [self._ids[symbol] for symbol in symbols]

    def state(self) -> dict[str, Any]:
        return {"kind": "symbols", "symbols": self.symbols}


KINDS: dict[str, type[Any]] = {
    "bpe": BytePairTokenizer,
    "characters": CharacterTokenizer,
    "bytes": ByteTokenizer,
    "symbols": SymbolTokenizer,
}


def check_state(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that its state would bring back as another class."""
    restored = KINDS.get(tokenizer.state()["kind"], type(tokenizer))
    if type(tokenizer) is not restored:
        raise Unsupported(
            f"{type(tokenizer).__name__} has the state of {restored.__name__}, which checkpoints "
            f"and the cache would bring back in its place; use {restored.__name__} itself."
        )


def tokenizer_from_state(state: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that gave `state`. Raise BadInput for a state of an unknown kind."""
    kind = state.get("kind")
    if kind not in KINDS:
        raise BadInput(f"a tokenizer's state must be of kind {', '.join(KINDS)}, got {kind!r}.")
    return KINDS[kind](**{name: value for name, value in state.items() if name != "kind"})


def restore_tokenizer(lines: Iterable[str], *, state: dict[str, Any]) -> Tokenizer:
    """Return a checkpoint's tokenizer, whatever the lines: it replaces a `train` factory."""
    return tokenizer_from_state(state)
