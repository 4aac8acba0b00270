"""What the data modules share: prepare once, find again, tell what was done."""

import importlib.metadata
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.data.batches import ResumableLoader
from attention_zoo.tasks.data.cache import Entry, fetch, sha256_of_code
from attention_zoo.tasks.data.diagnostics.base import Diagnostic
from attention_zoo.tasks.data.sources.base import Source
from attention_zoo.tasks.data.tokenizers import Tokenizer, tokenizer_from_state

TokenizerFactory = Callable[[Iterable[str]], Tokenizer]


class PreparedData(LightningDataModule):
    """Text, its tokenizer and its token ids, prepared once and kept in the cache.

    After `prepare_data(); setup()`: `tokenizer`, `fingerprint` (sha256 of the prepared data),
    `report` (what was read, dropped and noted), `train`, `valid`, `test` (the text), `probes`,
    `probe_references`.
    """

    source: Source[Any] | Diagnostic
    test_names: Sequence[str] = ("test",)  # of the test sets, in the order of their loaders
    tokenizer: Tokenizer
    fingerprint: str
    report: dict[str, Any]
    probes: list[str]
    probe_references: list[str] | None

    def __init__(
        self,
        *,
        source: Source[Any] | Diagnostic,
        tokenizer: TokenizerFactory,
        cache_dir: str | Path,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer_factory = tokenizer
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self.num_workers = num_workers
        self._entry: Entry | None = None

    @abstractmethod
    def build(self) -> dict[str, Any]:
        """The values to keep: "tokenizer" (its state), "report", and what `unpack` needs."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments that `build` depends on, in plain types."""

    @abstractmethod
    def unpack(self, values: dict[str, Any]) -> None:
        """Makes the splits out of the kept values."""

    def key(self) -> dict[str, Any]:
        """Every input of the prepared data."""
        return {
            "source": self.source.key(),
            "tokenizer": factory_key(self.tokenizer_factory),
            "tokenizers": importlib.metadata.version("tokenizers"),
            "options": self.options(),
            "code": sha256_of_code(Path(__file__).parent),
        }

    @abstractmethod
    def example(self) -> Any:
        """A batch of one sample, as long as the train split's are in the mean, without padding.

        Its tokens mean nothing: it is for what depends on sizes alone.
        """

    @abstractmethod
    def refuse_longer_than(self, limit: int) -> None:
        """Raises UserError where a model of at most `limit` positions cannot take these data."""

    def tokens_at(self, length: int, split: str) -> int:
        """Tokens of a sequence at a length that is not that of training.

        Raises:
            Unsupported: data whose sequences are as long as they are. UserError: a length that
                the split cannot be had at.
        """
        raise Unsupported(
            f"lengths needs text or a diagnostic, which can be had at any length, got "
            f"data of {type(self).__name__}."
        )

    def tests_at(
        self, length: int, split: str, *, stride: int, rank: int, world_size: int
    ) -> dict[str, ResumableLoader]:
        """A split at a length that `tokens_at` knows, by the way that it is cut; \"\" is the plain
        one. `stride` is that of windows that slide.
        """
        raise NotImplementedError

    def prepare_data(self) -> None:
        if self._entry is not None or hasattr(self, "fingerprint"):
            return
        self._entry = fetch(self.cache_dir / "data", self.key(), self.build)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "fingerprint"):
            return
        if self._entry is None:  # another process of this node has prepared the data
            self.prepare_data()
        assert self._entry is not None
        values, fingerprint, note = self._entry
        self._entry = None
        self.tokenizer = tokenizer_from_state(values["tokenizer"])
        self.report = values["report"]
        if note is not None:
            self.report["notes"].append(note)
        self.unpack(values)
        self.fingerprint = fingerprint

    def share(self) -> dict[str, int]:
        """Rank and world size, as the trainer has them."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


def factory_key(factory: Any) -> dict[str, Any]:
    """A tokenizer factory in plain types: its function's name and the options bound to it."""
    function = getattr(factory, "func", factory)
    if getattr(factory, "args", ()):
        raise UserError(
            "a tokenizer's options must be given by name, such as vocabulary_size=4000."
        )
    return {
        "function": f"{function.__module__}.{function.__qualname__}",
        "options": dict(getattr(factory, "keywords", {})),
    }
