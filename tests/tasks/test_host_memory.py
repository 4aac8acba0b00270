"""What cannot fit into the memory is refused before it is filled, in a line."""

from functools import partial
from types import SimpleNamespace

import pytest
from lightning import Trainer

from attention_zoo.errors import UserError
from attention_zoo.tasks import host_memory
from attention_zoo.tasks.data.diagnostics.copy import Copy
from attention_zoo.tasks.data.sources.phrases import Phrases
from attention_zoo.tasks.data.tokenizers import BytePairTokenizer, ByteTokenizer
from attention_zoo.tasks.data.translation_data import TranslationData
from attention_zoo.tasks.host_memory import check_memory
from attention_zoo.tasks.training.trainer_options import check_batches

BILLION = 10**9
DATA = {"source": Phrases(), "tokenizer": ByteTokenizer.train, "cache_dir": "cache"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Copy, size=100 * BILLION), "sequences of length .* would take at least .* GiB"),
        (partial(Copy, length=BILLION), "length must be at most 1,000,000, got 1,000,000,000"),
        (partial(Copy, vocabulary=BILLION), "vocabulary must be at most 1,000,000"),
        (partial(Phrases, size=100 * BILLION), "lower data.source.size"),
        (
            partial(BytePairTokenizer.train, ["a"], vocabulary_size=BILLION),
            "vocabulary_size must be at most 10,000,000",
        ),
        (
            partial(TranslationData, **DATA, num_workers=BILLION),
            "num_workers must be at most 1,024",
        ),
    ],
)
def test_a_billion_of_anything_is_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_long_draw_is_refused_though_there_are_few_sequences(monkeypatch):
    Copy(size=10, length=100_000)
    monkeypatch.setattr(host_memory, "host_memory_bytes", lambda: 2**30)
    with pytest.raises(UserError, match="and this machine has 1 GiB"):
        Copy(size=10, length=100_000)


def test_without_a_known_memory_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(host_memory, "host_memory_bytes", lambda: None)
    check_memory(2**80, "this", "take less")


def test_a_container_has_the_memory_of_its_limit(monkeypatch, tmp_path):
    whole = host_memory.host_memory_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host_memory, "CGROUP_LIMIT", limit)
    limit.write_text("max\n")
    assert host_memory.host_memory_bytes() >= whole
    limit.write_text(f"{2**20}\n")
    assert host_memory.host_memory_bytes() == 2**20


class TenBatches(SimpleNamespace):
    def train_dataloader(self):
        return range(10)


@pytest.mark.parametrize("option", ["accumulate_grad_batches", "val_check_interval"])
@pytest.mark.parametrize("size", ["tokens_per_batch", "batch_size"])
def test_the_remedy_for_too_many_batches_can_be_followed(option, size):
    def trainer(**options):
        return Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", **options)

    data = TenBatches(**{size: 512})
    with pytest.raises(UserError, match=f"Choose at most 10, .* a lower data.{size}") as error:
        check_batches(trainer(**{option: 11}), data)
    assert "\n" not in str(error.value)
    assert check_batches(trainer(**{option: 10}), data) is None
