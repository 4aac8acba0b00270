"""Data whose tokenizer or source has no key are not taken from the cache of others."""

from functools import partial
from pathlib import Path

import pytest

from attention_zoo.errors import Unsupported
from attention_zoo.tasks.data.language_data import LanguageData
from attention_zoo.tasks.data.sources.base import Source
from attention_zoo.tasks.data.tokenizers import ByteTokenizer, CharacterTokenizer


class Shouting(ByteTokenizer):
    """A tokenizer that inherits `train` and `state`."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.upper())


class TwoLines(Source[list[str]]):
    """A source of a user's own, without a key."""

    def __init__(self, line: str) -> None:
        self.line = line

    def splits(self) -> dict[str, list[str]]:
        return {name: [self.line, self.line] for name in ("train", "valid", "test")}


class Keyed(TwoLines):
    def cache_key(self) -> dict[str, object]:
        return {"lines": 2}


class OtherKeyed(Keyed):
    pass


class CallableBytes:
    def __init__(self, shift: int) -> None:
        self.shift = shift

    def __call__(self, lines: object) -> ByteTokenizer | CharacterTokenizer:
        return ByteTokenizer() if self.shift else CharacterTokenizer.train(lines)


def local_factories() -> list[object]:
    """Factories without a name of their own, in pairs that differ in what they make."""

    def first(lines: object) -> ByteTokenizer:
        return ByteTokenizer()

    inner = first

    def first(lines: object) -> CharacterTokenizer:
        return CharacterTokenizer.train(lines)

    return [
        (lambda lines: ByteTokenizer(), lambda lines: CharacterTokenizer.train(lines)),
        (inner, first),
        (partial(inner), partial(first)),
        (CallableBytes(1), CallableBytes(0)),
        (CallableBytes(1).__call__, CallableBytes(0).__call__),
        (partial(make_tokenizer, ByteTokenizer), partial(make_tokenizer, CharacterTokenizer)),
    ]


def make_tokenizer(kind: type, lines: object) -> ByteTokenizer | CharacterTokenizer:
    return kind.train(lines)


@pytest.mark.parametrize("pair", range(6))
def test_the_cache_tells_tokenizers_apart(tmp_path: Path, pair: int) -> None:
    streams = []
    for tokenizer in local_factories()[pair]:
        data = LanguageData(
            source=Keyed("a few words"),
            tokenizer=tokenizer,
            cache_dir=tmp_path,
            context_length=4,
            batch_size=1,
        )
        data.setup()
        streams.append(data.streams["train"].tolist())
    assert streams[0] != streams[1]


def test_a_tokenizer_that_inherits_train_is_told_apart_and_one_of_another_state_refused(
    tmp_path: Path,
) -> None:
    plain, shouting = (
        LanguageData(
            source=Keyed("a few words"),
            tokenizer=tokenizer,
            cache_dir=tmp_path,
            context_length=4,
            batch_size=1,
        )
        for tokenizer in (ByteTokenizer.train, Shouting.train)
    )
    assert plain.cache_key() != shouting.cache_key()
    with pytest.raises(Unsupported, match="Shouting has the state of ByteTokenizer"):
        shouting.setup()


def test_the_cache_tells_sources_apart(tmp_path: Path) -> None:
    lines = []
    sources = [TwoLines("one"), TwoLines("two"), Keyed("three"), OtherKeyed("four")]
    for source in sources:
        data = LanguageData(
            source=source,
            tokenizer=ByteTokenizer.train,
            cache_dir=tmp_path,
            context_length=4,
            batch_size=1,
        )
        data.setup()
        assert len(data.fingerprint) == 64
        lines.append(data.probes[0])
    assert lines == ["one", "two", "three", "four"]
    assert len(list((tmp_path / "data").iterdir())) == 2
