"""The auxiliary loss of an attention: it is trained, logged apart from the task's, and released."""

import copy
import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from attention_zoo import create_attention, create_position
from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.decoding import Sample
from attention_zoo.models import LanguageModel
from attention_zoo.tasks.data.batches import IGNORE_INDEX, LanguageBatch
from attention_zoo.tasks.data.tokenizers import ByteTokenizer
from attention_zoo.tasks.training.language_modeling import LanguageModelingTask

VOCABULARY = 11
INDEXER = {"attention": "lightning_indexer", "top_k": 3}


def language_task(**options):
    name = options.pop("attention")
    model = LanguageModel(
        vocabulary_size=VOCABULARY,
        dim=8,
        ffn_dim=16,
        layers=2,
        dropout=0.0,
        attention=partial(create_attention, name, heads=2, **options),
        position=partial(create_position, "rotary"),
    )
    return LanguageModelingTask(
        model=model,
        tokenizer=ByteTokenizer(),
        optimizer=torch.optim.SGD,
        schedule=lambda *_, **__: None,
        decoding=Sample(),
        config={},
    )


def language_batch():
    """Of 18 tokens, 14 are to be predicted."""
    tokens = torch.randint(VOCABULARY, (2, 10))
    targets = tokens[:, 1:].clone()
    targets[1, 5:] = IGNORE_INDEX
    return LanguageBatch(tokens[:, :-1], targets, None)


def gradients(loss, task):
    return torch.autograd.grad(loss, list(task.model.parameters()))


def test_it_counts_as_a_mean_added_to_the_mean_of_the_task():
    task, batch = language_task(**INDEXER), language_batch()
    loss = task.training_step(batch, 0)
    assert task.last_step.tokens == 14
    trained = gradients(loss / 14, task)

    logits = task.model(batch.inputs)
    mean = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE_INDEX)
    auxiliary = take_auxiliary_loss(task.model)
    torch.testing.assert_close(task.last_step.loss / 14, mean.detach())
    torch.testing.assert_close(trained, gradients(mean + auxiliary, task))
    [(_, sums)] = task.step_batches
    torch.testing.assert_close(sums, torch.stack([mean, auxiliary, mean / mean]) * 14)


def test_it_is_released_after_the_step():
    task = language_task(**INDEXER)
    task.training_step(language_batch(), 0)
    layers = [layer.self_attention.attention for layer in task.model.decoder.layers]
    assert [layer.auxiliary_loss for layer in layers] == [None, None]
    # A forward pass that is not a step may leave one; a copy is made all the same.
    task.model(language_batch().inputs)
    copy.deepcopy(task.model)


def test_without_one_the_loss_is_the_task_loss():
    task = language_task(attention="multi_head")
    loss = task.training_step(language_batch(), 0)
    assert loss == task.last_step.loss and not task.has_auxiliary_loss


def test_evaluation_does_not_compute_one():
    task = language_task(**INDEXER).eval()
    task.model(language_batch().inputs)
    assert take_auxiliary_loss(task.model) is None


@pytest.mark.parametrize("attention", ["lightning_indexer", "multi_head"])
def test_it_is_logged_where_there_is_one(train, attention):
    run = train(
        "task=language_modeling",
        "model=tiny",
        "model.dim=16",
        "model.heads=2",
        "model.layers=1",
        "model.ffn_dim=32",
        f"attention={attention}",
        "tokenizer=bytes",
        "data.context_length=16",
        "data.batch_size=64",
        "+trainer.limit_val_batches=1",
        "+trainer.limit_test_batches=1",
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
        "trainer.accumulate_grad_batches=2",
        "callbacks=minimal",
        "logger=csv",
    )
    header, *lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    steps = [row for row in columns if row["train/loss"]]
    assert len(steps) == 2
    # An untrained model gives each byte about the same probability: nothing is added to that.
    assert float(steps[0]["train/loss"]) == pytest.approx(math.log(256), abs=1.0)
    if attention == "multi_head":
        assert "train/auxiliary_loss" not in header.split(",")
    else:
        assert all(float(row["train/auxiliary_loss"]) > 0 for row in steps)
