"""Callbacks that inspect a model in training: norms of gradients, entropy of attention."""

import csv
import math
import types

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.build import build_task, instantiate
from attention_zoo.tasks.configuration.defaults import resolve_defaults
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.sweeps.launcher import register_launcher
from attention_zoo.tasks.training.callbacks.attention_entropy import (
    AttentionEntropy,
    sum_row_entropies,
)
from attention_zoo.tasks.training.callbacks.attention_maps import AttentionMaps
from attention_zoo.tasks.training.callbacks.gradient_norms import GradientNorms, gradients_by_part

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
]
SIZES = ["model=tiny", "model.dim=16", "model.heads=2", "model.layers=2", "model.ffn_dim=32"]
SIZES += ["model.dropout=0", "task.label_smoothing=0", "tokenizer=characters"]
TASKS = {
    "translation": ["data.source.size=60", "data.source.valid=8", "data.source.test=8"],
    "language_modeling": ["data=python_docs", "data.batch_size=4", "data.context_length=16"],
    "documents": ["data=python_docs", "data.batch_size=4", "data.context_length=16"],
    "diagnostic": [
        "data=copy",
        "data.source.length=6",
        "data.source.min_length=3",
        "data.source.size=99",
    ],
}


@pytest.fixture
def create(tmp_path):
    """Create a task and its data from the overrides of a command line."""
    register_launcher("train")

    def make(kind, *overrides):
        options = [*SIZES, *TASKS[kind], *overrides, "paths.run=run", f"paths.cache={tmp_path}"]
        if kind != "translation":
            options.append("task=language_modeling")
        if kind == "documents":
            options.append("data.documents=true")
        if kind == "diagnostic":
            options.remove("tokenizer=characters")
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            config = compose("train", overrides=options)
        choices = resolve_defaults(config)
        plain = OmegaConf.to_container(config, resolve=True)
        plain["choices"] = {"data": kind} | choices
        data = instantiate(plain["data"])
        data.prepare_data()
        data.setup()
        return build_task(plain, data.tokenizer), data

    return make


def fit(task, data, folder, callback, **options):
    """Train for some steps, validate on some batches, and return the logged rows."""
    logger = CSVLogger(folder, name="csv", version="")
    defaults = {"max_steps": 2, "log_every_n_steps": 1, "val_check_interval": 1}
    defaults["limit_val_batches"] = 4
    trainer = Trainer(
        **(defaults | options),
        accelerator="cpu",
        logger=logger,
        callbacks=[callback],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    logger.save()
    with (folder / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def first_metrics(rows, prefix):
    """Return the metrics of the first row that has some."""
    metrics = [{k: float(v) for k, v in row.items() if k.startswith(prefix) and v} for row in rows]
    return next(row for row in metrics if row)


# Gradients


@pytest.mark.parametrize("clip, parts", [(1e-6, 1), (None, 2)])
def test_norms_are_those_of_the_mean_loss_before_it_is_clipped(create, tmp_path, clip, parts):
    task, data = create("translation", "data.tokens_per_batch=512")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(parts), strict=False)]
    losses, tokens = torch.zeros(()), 0
    for batch in batches:
        logits, targets = task.predict_batch(batch)
        wanted = targets != IGNORE_INDEX
        losses = losses + cross_entropy(logits[wanted], targets[wanted], reduction="sum")
        tokens += int(wanted.sum())
    (losses / tokens).backward()
    by_hand = {
        name: math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for name, gradients in gradients_by_part(task.model).items()
    }
    everything = [parameter.grad for parameter in task.model.parameters()]
    by_hand["all"] = math.sqrt(sum(float(gradient.square().sum()) for gradient in everything))
    task.zero_grad()
    rows = fit(
        task,
        data,
        tmp_path,
        GradientNorms(),
        max_steps=1,
        gradient_clip_val=clip,
        accumulate_grad_batches=parts,
        val_check_interval=parts,
    )
    norms = {
        name.removeprefix("gradients/"): x for name, x in first_metrics(rows, "gradients/").items()
    }
    assert norms == pytest.approx(by_hand, rel=1e-4)
    assert {"decoder.layers.1.cross_attention", "encoder.norm", "source_embedding"} <= {*norms}


def test_norms_are_logged_at_the_log_interval(create, tmp_path):
    task, data = create("language_modeling")
    rows = fit(task, data, tmp_path, GradientNorms(), max_steps=5, log_every_n_steps=2)
    # Lightning repeats what was logged last at the end.
    assert len({row["gradients/all"] for row in rows if row["gradients/all"]}) == 2


# Attention


def test_entropy_by_hand():
    one, equal, none = [1.0, 0, 0, 0], [0.25] * 4, [0.0] * 4
    maps = torch.tensor([[[one, equal], [equal, none]]])
    sums, rows = sum_row_entropies(maps)
    assert rows.tolist() == [2, 1]
    assert sums.tolist() == pytest.approx([math.log(4), math.log(4)])


def test_weights_count_by_their_share():
    """With signs, and whatever they sum to."""
    share = torch.tensor([0.5, 0.3, 0.2]).view(1, 1, 1, 3)
    plain, _ = sum_row_entropies(share)
    signed, _ = sum_row_entropies(7 * share * torch.tensor([1, -1, 1]))
    torch.testing.assert_close(signed, plain)


@pytest.mark.parametrize("kind", TASKS)
def test_entropy_is_that_of_the_maps(create, kind):
    """Of every layer, role and head, over the keys that a query sees."""
    roles = ["encoder", "decoder", "cross"] if kind == "translation" else ["decoder"]
    task, data = create(kind)
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if name.endswith("attention.query.weight"):
                parameter.zero_()  # All keys alike: ln k for k keys.
    callback = AttentionEntropy(samples=3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = data
    logger = RecordingLogger()
    trainer.loggers = [logger]
    with torch.no_grad():
        callback.inspect(trainer, task)
    names = {
        f"attention_entropy/{role}/layer-{layer}/head-{head}"
        for role in roles
        for layer in (0, 1)
        for head in (0, 1)
    }
    assert logger.metrics.keys() == names
    batch = callback.sample_batch(trainer, task)
    expected = {role: [] for role in roles}
    pad = task.tokenizer.pad_id
    if kind == "translation":
        for source, target in zip(batch.source, batch.target, strict=True):
            keys, queries = int((source != pad).sum()), int((target != pad).sum()) - 1
            expected["encoder"] += [math.log(keys)] * keys
            expected["cross"] += [math.log(keys)] * queries
            expected["decoder"] += [math.log(position + 1) for position in range(queries)]
    else:
        for row, tokens in enumerate(batch.inputs):
            length = int((tokens != pad).sum())
            segment_ids = (
                batch.segment_ids[row] if batch.segment_ids is not None else torch.zeros(length)
            )
            for position in range(length):
                seen = segment_ids[: position + 1] == segment_ids[position]
                expected["decoder"].append(math.log(int(seen.sum())))
    for name, entropy in logger.metrics.items():
        values = expected[name.split("/")[1]]
        assert entropy == pytest.approx(sum(values) / len(values), abs=1e-5), name


class RecordingLogger:
    """A logger that keeps the last metrics."""

    def log_metrics(self, metrics, step):
        self.metrics = metrics


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_rows_of_maps_are_the_tokens_that_the_task_generates(create, decoding):
    task, data = create("translation", f"decoding={decoding}")
    task.eval()
    trainer = types.SimpleNamespace(datamodule=data)
    [record] = AttentionMaps(folder="figures", probes=1).records(trainer, task)
    source = task.source_tokens(data.probes[:1])
    best = task.decode(source)[0][0].tokens
    assert record.target_tokens == [*task.tokenizer.tokens(best), "<eos>"]
    assert record.source_tokens == [*task.tokenizer.tokens(source[0, :-1].tolist()), "<eos>"]
    written = torch.tensor([[task.tokenizer.bos_id, *best]])
    maps = task.model.attention_maps(source, written)
    assert {*maps} == {*record.maps} == {"encoder", "decoder", "cross"}
    for role, layers in record.maps.items():
        assert len(layers) == 2
        for layer, weights in zip(layers, maps[role], strict=True):
            torch.testing.assert_close(layer, weights[0])


@pytest.mark.parametrize("attention", ["multi_head", "differential", "relu", "retention", "linear"])
def test_entropy_of_every_kind_of_weights_is_finite(create, tmp_path, attention):
    task, data = create("language_modeling", f"attention={attention}", "position=sinusoidal")
    rows = fit(task, data, tmp_path, AttentionEntropy())
    entropies = first_metrics(rows, "attention_entropy/")
    assert len(entropies) == 4
    assert all(0 <= entropy <= math.log(16) for entropy in entropies.values())


@pytest.mark.slow
def test_inspections_change_no_weight(create, tmp_path):
    weights = []
    for number, callback in enumerate((Callback(), AttentionEntropy(), GradientNorms())):
        torch.manual_seed(0)
        task, data = create("translation", "model.dropout=0.1")
        fit(task, data, tmp_path / str(number), callback, max_steps=3)
        weights.append(task.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


@pytest.mark.parametrize("option", ["every_n_validations", "samples"])
def test_nothing_to_inspect_is_refused(option):
    with pytest.raises(UserError, match=f"{option} must be at least 1, got 0"):
        AttentionEntropy(**{option: 0})
