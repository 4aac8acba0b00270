"""The language-modelling task: its scores, its text, its answers on diagnostics."""

import json
import math

import pytest
import torch

from attention_zoo.tasks.configuration.build import instantiate
from attention_zoo.tasks.training.checkpoints import read_checkpoint
from attention_zoo.tasks.training.task import load_task
from tests.conformance.cases import mark_exhaustive

OPTIONS = [
    "task=language_modeling",
    "model=tiny",
    "model.dim=16",
    "model.heads=2",
    "model.layers=1",
    "model.ffn_dim=32",
    "tokenizer=bytes",
    "data.context_length=16",
    "data.batch_size=64",
    "+trainer.limit_val_batches=4",
    "+trainer.limit_test_batches=4",
    "trainer.max_steps=2",
    "callbacks=minimal",
    "logger=none",
]


def test_scores_agree_with_each_other_and_the_model_generates(train):
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
    whole = task.generate(["The "])[0]
    torch.manual_seed(0)
    assert "".join(task.stream("The ")) == whole
    record = task.attend("The ")
    assert list(record.maps) == ["decoder"] and len(record.source_tokens) == 5


DIAGNOSTIC = [
    *OPTIONS[1:6],
    "data.source.size=40",
    "data.source.valid=12",
    "data.source.test=12",
    "data.batch_size=5",
    "trainer.max_steps=30",
    "optimizer.lr=0.02",
    "callbacks=minimal",
    "logger=none",
]


@pytest.mark.parametrize(
    "kind",
    mark_exhaustive(
        (kind, "diagnostic")
        for kind in (
            *("recall", "copy", "reverse", "induction", "flip_flop", "parity"),
            *("mad_recall", "mad_fuzzy_recall", "mad_selective_copy", "mad_memorization"),
            "in_context_languages",
        )
    ),
)
def test_answers_are_scored_at_every_length(train, kind):
    sizes = {
        "recall": ["data.source.length=12", "data.source.pairs=2", "data.source.vocabulary=8"],
        "copy": ["data.source.length=4", "data.source.min_length=2", "data.source.vocabulary=4"],
        "induction": ["data.source.length=12", "data.source.vocabulary=9"],
        "flip_flop": ["data.source.length=12", "data.source.ignore_fraction=0.3"],
        "parity": ["data.source.length=12"],
        "mad_recall": ["data.source.length=12"],
        "mad_fuzzy_recall": [
            f"data.source.{option}" for option in ("length=16", "key_symbols=2", "value_symbols=2")
        ],
        "mad_selective_copy": ["data.source.length=12", "data.source.copied=3"],
        "mad_memorization": ["data.source.length=12", "data.source.vocabulary=20"],
        "in_context_languages": [
            f"data.source.{option}" for option in ("length=4", "min_strings=2", "max_strings=4")
        ],
    }
    size_options = sizes.get(kind, sizes["copy"])
    run = train(f"data={kind}", *DIAGNOSTIC, *size_options, "data.test_lengths=[18]")
    results = json.loads((run / "results.json").read_text())
    assert not [name for name in results if "perplexity" in name or "bits" in name]

    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    config = checkpoint["attention_zoo"]["config"]
    task = load_task(checkpoint, config)
    data = instantiate(config["data"])
    data.prepare_data()
    data.setup()
    for name, loader in zip(["test", "test@18"], data.test_dataloader(), strict=True):
        nll, right, whole, answers = 0.0, 0, 0, 0
        for batch in loader:
            logits = task.model(batch.inputs)  # At every position, as for text.
            for row in range(len(batch.inputs)):
                hits = []
                positions = batch.target_positions[row]
                for position, answer in zip(positions, batch.targets[row], strict=True):
                    if answer >= 0:
                        nll -= logits[row, position].log_softmax(-1)[answer].item()
                        hits.append(logits[row, position].argmax() == answer)
                right, answers, whole = right + sum(hits), answers + len(hits), whole + all(hits)
        at = name.removeprefix("test")
        assert results[f"test/loss{at}"] == pytest.approx(nll / answers, rel=1e-4)
        assert results[f"test/accuracy{at}"] == pytest.approx(float(right) / answers, rel=1e-6)
        assert results[f"test/exact_match{at}"] == pytest.approx(whole / 12, rel=1e-6)
    limit = config["data"]["answer_tokens"]
    assert all(len(line.split()) <= limit for line in task.generate(data.probes))


@pytest.mark.slow
def test_a_small_recall_is_learned(train):
    """All of it: the pairs, the questions, the loss and the scores fit together."""
    run = train(
        "data=recall",
        *["model=tiny", "model.ffn_dim=64", "position=sinusoidal"],
        *["data.source.length=16", "data.source.pairs=2", "data.source.vocabulary=16"],
        *["data.source.size=20000", "data.source.valid=200", "data.source.test=200"],
        *["data.batch_size=64", "trainer.max_steps=140", "optimizer.lr=0.01"],
        *["trainer.val_check_interval=140", "callbacks=minimal", "logger=none"],
    )
    results = json.loads((run / "results.json").read_text())
    assert results["test/accuracy"] > 0.9
