"""Training takes many logits in chunks, with the same results, unless others may look at them."""

import json

import pytest
import torch

from attention_zoo.models import Seq2Seq, chunked_cross_entropy
from attention_zoo.tasks.data.batches import TranslationBatch
from attention_zoo.tasks.training.translation import TranslationTask
from tests.tasks.test_translation import LINES, SMALL, new_task

RUN = [*SMALL, "callbacks=minimal", "logger=csv", "trainer.max_steps=5"]
TASKS = {
    "translation": [*LINES, "trainer.accumulate_grad_batches=2"],
    "language_modeling": [
        *("task=language_modeling", "tokenizer=bytes", "data.context_length=16"),
        *("data.batch_size=8", "+trainer.limit_val_batches=2", "+trainer.limit_test_batches=2"),
    ],
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Allow 500 logits at a time, and count the chunks that gradients are computed of."""
    chunks = []
    loss = chunked_cross_entropy._SumOfChunks.forward

    def counted(ctx, chunk_loss, parts, *inputs):
        chunks.append(len(parts))
        return loss(ctx, chunk_loss, parts, *inputs)

    monkeypatch.setattr(chunked_cross_entropy, "CPU_CHUNK_LOGITS", 500)
    monkeypatch.setattr(chunked_cross_entropy._SumOfChunks, "forward", staticmethod(counted))
    return chunks


def make_batch():
    source, target = torch.randint(3, 260, (4, 9)), torch.randint(3, 260, (4, 7))
    target[0, 4:] = 0
    return TranslationBatch(source=source, target=target, index=torch.arange(4))


def gradients(task, batch):
    loss, targets = task.training_loss(batch)
    loss.backward()
    grads = {name: x.grad for name, x in task.model.named_parameters()}
    losses, _ = task.token_losses(batch)
    return loss.detach(), targets, grads, losses.detach()


def test_loss_and_gradients_are_the_same(small_chunks):
    batch = make_batch()
    chunked = gradients(new_task(label_smoothing=0.1).double(), batch)
    assert small_chunks == [24]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_cross_entropy, "CPU_CHUNK_LOGITS", 2**22)
        whole = gradients(new_task(label_smoothing=0.1).double(), batch)
    assert small_chunks == [24]
    torch.testing.assert_close(chunked, whole)


class OtherModel(Seq2Seq):
    def forward(self, source, target):
        return super().forward(source, target).tanh()


class OtherTask(TranslationTask):
    def predict_batch(self, batch):
        logits, targets = super().predict_batch(batch)
        return logits.tanh(), targets


@pytest.mark.parametrize("own", ["model", "task"])
def test_logits_of_a_users_own_are_taken_at_once(small_chunks, own):
    task, batch = new_task(), make_batch()
    expected, targets = task.predict_batch(batch)
    if own == "model":
        task.model.__class__ = OtherModel
    else:
        task.__class__ = OtherTask
    loss, _ = task.training_loss(batch)
    assert not small_chunks
    plain = torch.nn.functional.cross_entropy
    expected = plain(expected.tanh().flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_a_compiled_model_is_called_in_its_compiled_form(small_chunks):
    task, batch = new_task(), make_batch()
    expected, _ = task.training_loss(batch)
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph

    task.model.compile(backend=backend)
    losses = [task.training_loss(batch)[0] for _ in range(3)]
    torch.testing.assert_close(losses, [expected] * 3)
    graphs = len(calls)
    assert graphs
    assert len(small_chunks) == 4
    task.training_loss(batch)
    assert len(calls) == graphs


def test_processes_average_the_gradients(small_chunks, tmp_path):
    class Loss(torch.nn.Module):
        def __init__(self, task):
            super().__init__()
            self.model = task.model
            self.task = [task]

        def forward(self, batch):
            return self.task[0].training_loss(batch)[0]

    batch = make_batch()
    _, _, expected, _ = gradients(new_task(), batch)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        task = new_task()
        torch.nn.parallel.DistributedDataParallel(Loss(task))(batch).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert small_chunks == [24, 24]
    found = {name: x.grad for name, x in task.model.named_parameters()}
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_training_has_the_same_results(train, small_chunks, task):
    def numbers():
        run = train(*RUN, *TASKS[task])
        results = json.loads((run / "results.json").read_text())
        return [results["val/loss"], results["test/loss"]]

    chunked = numbers()
    assert len(small_chunks) >= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_cross_entropy, "CPU_CHUNK_LOGITS", 2**22)
        assert chunked == pytest.approx(numbers(), rel=1e-5)
