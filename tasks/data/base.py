"""The base of the data modules: prepare data once, load them from the cache, report on them."""

import importlib.metadata
import logging
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer

from attention_zoo.errors import Unsupported, UserError, check_not_negative, short_repr
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.batches import BatchDataset
from attention_zoo.tasks.data.cache import function_key, get_or_build, is_plain, sha256_of_code
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import EpochSampler, FixedBatchSampler, consecutive_batches
from attention_zoo.tasks.data.sources.base import Source
from attention_zoo.tasks.data.tokenizers import Tokenizer, check_state, tokenizer_from_state

log = logging.getLogger(__name__)

MOST_WORKERS = 1024
# The values to cache for a split, by name, and its counts for the report.
EncodedSplit = tuple[dict[str, Any], dict[str, int]]


class PreparedData(LightningDataModule):
    """Text, its tokenizer and its token ids, prepared once and stored in the cache.

    After `prepare_data(); setup()` it has `tokenizer`, `fingerprint` (the sha256 of the prepared
    data), `report` (counts, notes and warnings), the samples of the splits, `probes` and
    `probe_references`.

    Args:
        source: provides the text.
        tokenizer: makes the tokenizer of the train split.
        cache_dir: the folder of the cache.
        root: folder of files to read `source` from.
        seed: of the order of the batches.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        probes: lines to try the model on during training; each data module has its own default.
    """

    source: Source[Any]
    batch_size: int
    cache_options: Mapping[str, Any] = {}  # those that the cached values depend on
    test_names: Sequence[str] = ("test",)  # of the test sets, in the order of their loaders
    tokenizer: Tokenizer
    fingerprint: str
    report: dict[str, Any]
    probes: list[str]
    probe_references: list[str] | None

    @typed_options
    def __init__(
        self,
        *,
        source: Source[Any],
        tokenizer: Callable[[Iterable[str]], Tokenizer],
        cache_dir: str | Path,
        root: str | Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
        probes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(source, Source) or not callable(tokenizer):
            raise UserError(
                "a data module needs a source of text and a function that makes a tokenizer, such "
                f"as ByteTokenizer.train; got {short_repr(source)} and {short_repr(tokenizer)}."
            )
        if isinstance(probes, str):
            raise UserError(f"data.probes must be a list of lines, got {short_repr(probes)}.")
        check_not_negative(**{"data.num_workers": num_workers, "data.seed": seed})
        if num_workers > MOST_WORKERS:
            raise UserError(
                f"data.num_workers must be at most {MOST_WORKERS:,}, as each is a process, got "
                f"{num_workers:,}."
            )
        self.source = source if root is None else source.with_root(root)
        self.tokenizer_factory = tokenizer
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self.num_workers = num_workers
        self.chosen_probes = probes

    def read_splits(self) -> dict[str, Any]:
        """Return the items of all splits, or of those that the source keeps for an evaluation."""
        return self.source.splits()

    def make_tokenizer(self, train: Any) -> Tokenizer:
        """Build the tokenizer, which may learn from the items of the train split."""
        return self.tokenizer_factory(train)

    @abstractmethod
    def encode_split(
        self, split: str, items: Any, tokenizer: Tokenizer, folder: Path
    ) -> EncodedSplit:
        """Encode the items of a split; large arrays may be written to `folder`."""

    def inspect(self, splits: dict[str, Any], report: dict[str, Any]) -> list[str]:
        """Add counts to the report, and return warnings of what is usually a mistake in text."""
        return []

    @abstractmethod
    def load_values(self, values: dict[str, Any]) -> None:
        """Make the splits and the probes from the cached values."""

    @abstractmethod
    def dataset(self, split: str) -> BatchDataset:
        """Return the samples of a split."""

    @abstractmethod
    def sampler(self, split: str, **options: int) -> EpochSampler:
        """Return a split's batches for training; `options` are those of `EpochSampler`."""

    @abstractmethod
    def example_batch(self) -> Any:
        """Return a batch of one sample, of the train split's mean length, with arbitrary tokens."""

    @abstractmethod
    def check_max_length(self, max_length: int) -> None:
        """Raise UserError if a sequence is longer than the model's `max_length`."""

    def check_option_lengths(self, max_length: int) -> None:
        """Raise UserError if the options alone make a sequence longer than `max_length`.

        This needs no prepared data.
        """

    def tokens_at_length(self, length: int, split: str) -> int:
        """Return the tokens of a sequence at this length, or raise UserError if there is none."""
        raise Unsupported(
            "lengths needs text or a diagnostic, whose length can be chosen, got data of "
            f"{type(self).__name__}."
        )

    def loaders_at_length(
        self, length: int, split: str, *, stride: int, **ranks: int
    ) -> dict[str, ResumableLoader]:
        """Return the loaders of a split at a length that `tokens_at_length` allows, by name.

        In "" windows of text do not overlap; in "sliding" they start every `stride` tokens. `ranks`
        are the rank and the world size.
        """
        raise NotImplementedError

    def cache_key(self) -> dict[str, Any] | None:
        """Return every input of the cached values, in plain types; None if they have no key."""
        function = function_key(getattr(self.tokenizer_factory, "func", self.tokenizer_factory))
        source = self.source.cache_key()
        if function is None or source is None:
            return None
        kind = type(self.source)
        key = {
            "source": {"class": f"{kind.__module__}.{kind.__qualname__}", **source},
            "tokenizer": {
                "function": function,
                "arguments": list(getattr(self.tokenizer_factory, "args", ())),
                "options": dict(getattr(self.tokenizer_factory, "keywords", {})),
            },
            "tokenizers": importlib.metadata.version("tokenizers"),
            "options": dict(self.cache_options),
            "code": sha256_of_code(Path(__file__).parent),
        }
        return key if is_plain(key) else None

    def build_values(self, folder: Path) -> dict[str, Any]:
        """Return the values to cache, without the arrays that are written to `folder`."""
        splits = self.read_splits()
        tokenizer = self.make_tokenizer(splits.get("train", ()))
        check_state(tokenizer)
        notes = list(self.source.notes)
        source = self.source.cache_key() or {"source": type(self.source).__name__}
        report: dict[str, Any] = {"source": source, "notes": notes}
        values: dict[str, Any] = {"tokenizer": tokenizer.state(), "report": report}
        for split, items in splits.items():
            encoded, report[split] = self.encode_split(split, items, tokenizer, folder)
            values |= {f"{split}_{name}": value for name, value in encoded.items()}
        report["warnings"] = self.inspect(splits, report) if "train" in splits else []
        return values

    def prepare_data(self) -> None:
        if hasattr(self, "fingerprint"):
            return
        key = self.cache_key()
        if key is None:
            log.info(
                "The prepared data are not cached: their source has no cache_key, or their "
                "tokenizer is no function of a module with plain arguments."
            )
        folder = self.cache_dir / "data" if key else Path(tempfile.mkdtemp())
        if key is None:  # Workers open its files again, so it stays as long as this object.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        values, fingerprint, note = get_or_build(folder, key or {}, self.build_values)
        self.tokenizer = tokenizer_from_state(values["tokenizer"])
        self.report = values["report"]
        if note is not None:
            self.report["notes"].append(note)
        self.load_values(values)
        self.fingerprint = fingerprint

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()  # Lightning calls it in one process of each node only.

    def train_dataloader(self) -> ResumableLoader:
        sampler = self.sampler("train", seed=self.seed, **self.rank_and_world_size())
        return ResumableLoader(self.dataset("train"), sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader:
        return self.evaluation_loader("valid")

    def test_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> ResumableLoader:
        """Return the loader of another split than train."""
        ranks = self.rank_and_world_size()
        return self.consecutive_loader(self.dataset(split), self.batch_size, **ranks)

    def consecutive_loader(
        self, dataset: BatchDataset, batch_size: int, **ranks: int
    ) -> ResumableLoader:
        """Return the loader of all samples in order."""
        sampler = FixedBatchSampler(consecutive_batches(dataset.indices(), batch_size), **ranks)
        return ResumableLoader(dataset, sampler, num_workers=self.num_workers)

    def rank_and_world_size(self) -> dict[str, int]:
        """Return the trainer's rank and world size, as options of a sampler."""
        return {} if self.trainer is None else data_ranks(self.trainer)


def data_ranks(trainer: Trainer) -> dict[str, int]:
    """Return which share of the batches a trainer takes, as options of a sampler.

    Ranks that divide a model, not the batches, take the same ones.
    """
    shares = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return {"rank": shares["rank"], "world_size": shares["num_replicas"]}
