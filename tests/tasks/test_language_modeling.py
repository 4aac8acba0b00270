"""The language-modelling task, trained and asked."""

import json
import math

import pytest
import torch

from attention_zoo.tasks.base import load_task
from attention_zoo.tasks.checkpoints import read_checkpoint

OPTIONS = [
    "task=language_modeling",
    "model=tiny",
    "model.dim=16",
    "model.heads=2",
    "model.layers=1",
    "model.hidden=32",
    "tokenizer=bytes",
    "data.context=16",
    "data.batch_size=64",
    "+trainer.limit_val_batches=4",
    "+trainer.limit_test_batches=4",
    "trainer.max_steps=2",
    "callbacks=minimal",
    "logger=none",
]


def test_scores_agree_with_each_other_and_the_model_goes_on(train):
    run = train(*OPTIONS, "data.documents=true", "attention=sliding_window", "attention.window=4")
    results = json.loads((run / "results.json").read_text())
    for split in ("val", "test"):
        loss = results[f"{split}/loss"]
        assert results[f"{split}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        # A token is a byte, but for a few that end documents.
        assert results[f"{split}/bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-2)

    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    task = load_task(checkpoint, checkpoint["attention_zoo"]["config"])
    torch.manual_seed(0)
    whole = task.respond(["The "])[0]
    torch.manual_seed(0)
    assert "".join(task.stream("The ")) == whole
    reading = task.attend("The ")
    assert list(reading.maps) == ["decoder"] and len(reading.source_tokens) == 5
