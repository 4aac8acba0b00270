"""Training takes two steps on each real text; a missing text is skipped."""

import json

import pytest

pytestmark = pytest.mark.slow
SHORT = ["model=tiny", "trainer.max_steps=2", "logger=none", "callbacks=minimal"]
SHORT += ["+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "decoding.max_extra=3"]
DECODING = ["decoding.max_ratio=0.2", "tokenizer=bytes", "data.max_tokens=512"]


def losses(run):
    results = json.loads((run / "results.json").read_text())
    return results["val/loss"], results["test/loss"]


@pytest.mark.parametrize("target", ["de", "fr"])
def test_multi30k(train, real, target):
    folder = real("multi30k/raw")
    run = train(
        *SHORT, *DECODING, "data=multi30k", f"data.root={folder}", f"data.source.pair=[en,{target}]"
    )
    assert all(0 < loss < 20 for loss in losses(run))


def test_tatoeba_from_files(train, real):
    folder = real("tatoeba-en-pt")
    files = {split: f"[[{split}.en.gz,{split}.pt.gz]]" for split in ("train", "valid", "test")}
    sources = [f"data.source.{split}={pair}" for split, pair in files.items()]
    run = train(*SHORT, *DECODING, "data=parallel_files", f"data.root={folder}", *sources)
    assert all(0 < loss < 20 for loss in losses(run))


TEXT = ["task=language_modeling", *SHORT[:-1], "tokenizer=characters", "data.context_length=32"]


def test_tinyshakespeare(train, real):
    run = train(*TEXT, "data=tinyshakespeare", f"data.root={real('tinyshakespeare')}")
    valid, test = losses(run)
    assert 0 < valid < 20 and valid == test  # the same 10 %, as is usual


def test_wikitext(train, real):
    run = train(
        *TEXT,
        "data=wikitext2",
        f"data.root={real('wikitext-2')}",
        "data.source.files.train=valid.txt",
    )
    assert all(0 < loss < 20 for loss in losses(run))
