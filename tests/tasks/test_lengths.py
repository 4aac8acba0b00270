"""Every length predicts the same targets, each once, and reports the right scores."""

import json
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Trainer
from omegaconf import OmegaConf
from torch import nn

from attention_zoo.decoding import Sample
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.analysis.lengths import LengthDataModule, check_lengths, score_lengths
from attention_zoo.tasks.commands.cli import main
from attention_zoo.tasks.commands.warning_filters import silence_libraries
from attention_zoo.tasks.configuration.conf_files import DEFAULT_TRAINING_LENGTH, entry_config
from attention_zoo.tasks.configuration.defaults import longest_training_sequence, resolve_defaults
from attention_zoo.tasks.data.diagnostic_data import DiagnosticData
from attention_zoo.tasks.data.diagnostics.copy import Copy
from attention_zoo.tasks.data.language_data import LanguageData
from attention_zoo.tasks.data.sources.text_files import TextFiles
from attention_zoo.tasks.data.tokenizers import ByteTokenizer, SymbolTokenizer
from attention_zoo.tasks.training.language_modeling import LanguageModelingTask
from attention_zoo.tasks.training.metrics import LossByPosition
from attention_zoo.zoo import POSITION, discover

BOS = 1


@pytest.fixture
def data(tmp_path: Path) -> LanguageData:
    """Text of several documents, with one token for each byte."""
    for number, size in enumerate((30, 7, 40)):
        (tmp_path / f"{number}.txt").write_text("".join(chr(97 + i % 26) for i in range(size)))
    source = TextFiles(train="0.txt", valid="1.txt", test=["0.txt", "1.txt", "2.txt"])
    data = LanguageData(
        source=source,
        root=tmp_path,
        tokenizer=ByteTokenizer.train,
        cache_dir=tmp_path / "cache",
        context_length=8,
        batch_size=4,
    )
    data.prepare_data()
    data.setup()
    return data


def find_targets(data: LanguageData, length: int, stride: int, **ranks: int) -> dict[str, list]:
    """Return (position in the stream, position in the window, window start) by kind of window."""
    # Each token is its position, except the beginnings of documents.
    stream = data.streams["test"]
    numbered = np.arange(len(stream)) + 1000
    numbered[stream == BOS] = BOS
    data.streams["test"] = numbered
    targets: dict[str, list] = {}
    ranks = {"rank": 0, "world_size": 1} | ranks
    for kind, loader in data.loaders_at_length(length, "test", stride=stride, **ranks).items():
        targets[kind] = []
        for starts, batch in zip(loader.sampler, loader, strict=True):
            assert batch.inputs.shape == (len(starts), length)
            for start, row in zip(starts, batch.targets, strict=True):
                targets[kind] += [
                    (int(token) - 1000, position, start)
                    for position, token in enumerate(row)
                    if token >= 0
                ]
    data.streams["test"] = stream
    return targets


WINDOWS = [(1, 1), (2, 1), (5, 3), (8, 8), (16, 5), (64, 32), (64, 1), (82, 41)]


@pytest.mark.parametrize("length, stride", WINDOWS)
def test_every_length_and_stride_has_the_same_targets_once(data, length, stride) -> None:
    stream = data.streams["test"]
    assert len(stream) == 77 + 6
    expected = [x for x in range(1, len(stream)) if stream[x] != BOS]
    for targets in find_targets(data, length, stride).values():
        assert sorted(target for target, _, _ in targets) == expected


@pytest.mark.parametrize("length, stride", WINDOWS)
def test_windows_give_the_context_that_they_promise(data, length, stride) -> None:
    found = find_targets(data, length, stride)
    for target, position, start in found[""]:
        assert start % length == 0 and position == (target - 1) % length == target - 1 - start
    for target, position, start in found["sliding"]:
        assert start % stride == 0 and position == target - 1 - start
        assert position >= length - stride or start == 0


@pytest.mark.parametrize("length", [1, 5, 64])
def test_sliding_by_a_whole_window_is_not_to_slide(data, length) -> None:
    found = find_targets(data, length, length)
    assert found["sliding"] == found[""]


def test_two_processes_share_the_targets(data) -> None:
    whole = find_targets(data, 5, 2)
    halves = [find_targets(data, 5, 2, rank=rank, world_size=2) for rank in range(2)]
    for how, targets in whole.items():
        assert sorted(halves[0][how] + halves[1][how]) == sorted(targets)


def test_batches_are_of_as_many_tokens_at_every_length(data) -> None:
    for length, rows in ((1, 32), (4, 8), (16, 2), (32, 1), (64, 1)):
        loaders = data.loaders_at_length(length, "test", stride=1, rank=0, world_size=1)
        assert [max(map(len, loader.sampler)) for loader in loaders.values()] == [rows, rows]


class PositionalModel(nn.Module):
    """A model whose logit of the letter e is the position in the window / 4."""

    max_length: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens, segment_ids=None, target_positions=None):
        logits = torch.zeros(*tokens.shape, 260)
        logits[..., ord("e") + 4] = torch.arange(tokens.shape[1]) / 4
        return logits

    @staticmethod
    def loss(target: int, position: int) -> float:
        return math.log(math.exp(position / 4) + 259) - (target == ord("e") + 4) * position / 4


def by_hand(stream: list[int], length: int, stride: int) -> list[tuple[int, float]]:
    """Return position and loss of each target, from a window for this target alone."""
    losses = []
    for target in range(1, len(stream)):
        if stream[target] != BOS:
            # The first window that reaches it.
            start = stride * max(0, math.ceil((target - length) / stride))
            position = target - 1 - start
            losses.append((position, PositionalModel.loss(stream[target], position)))
    return losses


@pytest.mark.parametrize("stride", [None, 3])
def test_scores_are_those_counted_by_hand(data, stride) -> None:
    config = {"lengths": [16, 4], "stride": stride, "data": {"_target_": "text"}}
    tests = LengthDataModule(config, data, split="test", max_length=None, training_length=8)
    task = LanguageModelingTask(
        model=PositionalModel(),
        tokenizer=data.tokenizer,
        optimizer=torch.optim.SGD,
        schedule=None,
        decoding=Sample(),
        config={},
    )
    silence_libraries()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    entry = score_lengths(trainer, task, tests)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    stream = data.streams["test"].tolist()
    assert entry["targets"] == 77 + 3  # the letters, and the ends of the documents
    assert entry["scored"] == [4, 16]
    assert entry["stride"] == {str(x): stride or x // 2 for x in (4, 16)}
    for length in (4, 16):
        plain = by_hand(stream, length, length)
        loss = sum(x for _, x in plain) / len(plain)
        assert metrics[f"test/loss@{length}"] == pytest.approx(loss, rel=1e-6)
        assert metrics[f"test/perplexity@{length}"] == pytest.approx(math.exp(loss), rel=1e-6)
        bits = sum(x for _, x in plain) / math.log(2) / 77
        assert metrics[f"test/bits_per_byte@{length}"] == pytest.approx(bits, rel=1e-6)
        for position, mean in enumerate(entry["loss_by_position"][str(length)]):
            here = [x for at, x in plain if at == position]
            assert mean == pytest.approx(sum(here) / len(here), abs=1e-5)
        slid = by_hand(stream, length, stride or length // 2)
        loss = sum(x for _, x in slid) / len(slid)
        assert metrics[f"test/sliding_loss@{length}"] == pytest.approx(loss, rel=1e-6)
        perplexity = metrics[f"test/sliding_perplexity@{length}"]
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-6)
        assert loss != pytest.approx(metrics[f"test/loss@{length}"], rel=1e-6)


def test_losses_by_position_keep_digits_and_count_what_is_predicted() -> None:
    metric = LossByPosition(3)
    for _ in range(5000):
        metric.update(torch.tensor([[1e4, 0.1, 0.0]]), torch.tensor([[True, True, False]]))
    sums, counts = metric.compute()
    assert counts.tolist() == [5000, 5000, 0]
    assert sums[0] == 5e7 and sums[1] == pytest.approx(500, rel=1e-7)


def test_lengths_are_refused_one_by_one_with_reasons(data) -> None:
    config = {"lengths": [200, 4, 16], "stride": None, "data": {"_target_": "text"}}
    tests = LengthDataModule(config, data, split="test", max_length=8, training_length=8)
    assert tests.lengths == [4] and list(tests.refused) == [16, 200]
    assert "at most 8 tokens, got sequences of 16" in tests.refused[16]
    assert "82 tokens can be predicted" in tests.refused[200]
    config["lengths"] = [16, 200]
    with pytest.raises(Unsupported, match=r"None of the lengths.* 16: the model takes at most 8"):
        LengthDataModule(config, data, split="test", max_length=8, training_length=8)


def test_diagnostics_come_at_any_length(tmp_path) -> None:
    source = Copy(length=6, min_length=3, vocabulary=10, size=20, valid=9, test=9)
    data = DiagnosticData(
        source=source, tokenizer=SymbolTokenizer.train, cache_dir=tmp_path, batch_size=8
    )
    assert data.tokens_at_length(6, "test") == 14 and data.tokens_at_length(10, "test") == 22
    (own,) = data.loaders_at_length(6, "test", stride=3, rank=0, world_size=1).values()
    rows = source.draw_split("test")
    assert np.array_equal(torch.cat([batch.inputs for batch in own]), rows.inputs)
    (longer,) = data.loaders_at_length(10, "valid", stride=5, rank=0, world_size=1).values()
    assert [len(batch.inputs) for batch in longer] == [5, 4]  # 8 rows of 14 are 5 of 22
    assert all(batch.targets.min() >= 0 for batch in longer)  # strings as long as that, all
    limited = {"lengths": [6, 10], "stride": None}
    limited["data"] = {"_target_": "attention_zoo.tasks.data.diagnostic_data.DiagnosticData"}
    tests = LengthDataModule(limited, data, split="test", max_length=14, training_length=6)
    assert tests.test_names == ["test@6"] and list(tests.refused) == [10]


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"lengths": 64}, r"lengths must be a list .* got 64"),
        ({"lengths": [64, 64]}, "different whole numbers"),
        ({"lengths": [0]}, "at least 1"),
        ({"lengths": [True]}, "whole numbers"),
        ({"lengths": [], "stride": 4}, "stride=4 needs lengths"),
        ({"stride": 65}, "from 1 to the shortest of the lengths, got stride=65"),
        ({"stride": 0}, "got stride=0"),
        ({"stride": 1.5}, "got stride=1.5"),
        ({"trainer": {"limit_test_batches": 2}}, r"trainer\.limit_test_batches=2"),
        ({"trainer": {"limit_test_batches": 1}}, r"trainer\.limit_test_batches=1;"),
        ({"trainer": {"limit_test_batches": 0.5}}, r"limit_test_batches=0\.5"),
        ({"trainer": {"fast_dev_run": True}}, r"trainer\.fast_dev_run"),
        ({"task": {"name": "translation"}}, "the length of a translation"),
        (
            {"data": {"_target_": "attention_zoo.tasks.data.diagnostic_data.DiagnosticData"}}
            | {"stride": 4},
            "stride=4 needs text",
        ),
    ],
)
def test_invalid_lengths_are_refused(changes, reason) -> None:
    config = {
        "lengths": [128, 64],
        "stride": None,
        "task": {"name": "language_modeling"},
        "data": {"_target_": "text"},
        "trainer": {"limit_test_batches": 1.0},
    }
    check_lengths(config)
    check_lengths(config | {"stride": 64})
    with pytest.raises(UserError, match=reason):
        check_lengths(config | changes)


# The whole way, from the command line.

TINY = [
    *["task=language_modeling", "model=tiny", "model.dim=16", "model.heads=2", "model.layers=1"],
    *["model.ffn_dim=32", "tokenizer=bytes", "data.context_length=16", "data.batch_size=64"],
    *["data.source.valid_fraction=0.01", "trainer.max_steps=2", "trainer.accelerator=cpu"],
    *["callbacks=minimal", "+trainer.limit_val_batches=1"],
]


class Trained(SimpleNamespace):
    """The program in a folder with one run."""

    def __call__(self, *arguments: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("ATTENTION_ZOO_CACHE", str(self.folder / "cache"))
            patch.setenv("WANDB_MODE", "offline")
            patch.delenv("HYDRA_FULL_ERROR", raising=False)
            patch.setattr(sys, "argv", ["attention-zoo", *arguments])
            main()
        os.environ.pop("HYDRA_FULL_ERROR", None)

    @property
    def evaluation(self) -> Path:
        return max((self.run / "evaluations").iterdir(), key=lambda path: path.name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    program = Trained(folder=tmp_path_factory.mktemp("lengths"))
    lengths = "lengths=[8,16,32,64]"
    program("train", *TINY, "position=learned", "position.max_length=32", lengths, "logger=csv")
    (program.run,) = (program.folder / "logs" / "language_modeling" / "runs").iterdir()
    program.best = program.run / "checkpoints" / "best.ckpt"
    program.results = json.loads((program.run / "results.json").read_text())
    return program


@pytest.mark.slow
def test_training_ends_with_the_lengths(trained) -> None:
    results, entry = trained.results, trained.results["lengths"]
    assert entry["trained_at"] == 16 and entry["split"] == "test" and entry["scored"] == [8, 16, 32]
    assert "at most 32 tokens" in entry["refused"]["64"]
    assert results["test/loss@16"] == pytest.approx(results["test/loss"], rel=1e-6)
    for length in (8, 16, 32):
        losses = entry["loss_by_position"][str(length)]
        assert len(losses) == length
        # Nearly all positions have as many targets.
        assert np.mean(losses) == pytest.approx(results[f"test/loss@{length}"], rel=0.01)
        for way in ("", "sliding_"):
            loss = results[f"test/{way}loss@{length}"]
            assert results[f"test/{way}perplexity@{length}"] == pytest.approx(math.exp(loss))
            assert results[f"test/{way}bits_per_byte@{length}"] > 0
    assert (trained.run / "figures" / "loss_by_position.png").stat().st_size > 10_000
    assert "test/sliding_perplexity@32" in (trained.run / "csv" / "metrics.csv").read_text()


@pytest.mark.slow
def test_an_evaluation_finds_the_same_and_leaves_a_folder(trained, capsys) -> None:
    trained("evaluate", f"ckpt_path={trained.best}", "lengths=[64,32,16]", "stride=8", "logger=csv")
    shown = capsys.readouterr().out
    assert "64 refused: the model takes at most 32 tokens" in shown
    folder = trained.evaluation
    assert f"results    {(folder / 'results.json').relative_to(trained.folder)}" in shown
    results = json.loads((folder / "results.json").read_text())
    for name in ("test/loss@16", "test/sliding_loss@16", "test/bits_per_byte@32"):
        assert results[name] == pytest.approx(trained.results[name], rel=1e-6)
    assert results["test/sliding_loss@32"] != trained.results["test/sliding_loss@32"]
    assert results["lengths"]["stride"] == {"16": 8, "32": 8}
    assert "stride=8" in results["overrides"] and results["checkpoint"] == str(trained.best)
    assert (folder / "loss_by_position.png").exists()
    assert "test/loss@32" in (folder / "csv" / "metrics.csv").read_text()


@pytest.mark.slow
def test_results_go_where_they_are_wanted_and_else_nowhere(trained, capsys) -> None:
    before = {*trained.run.rglob("*")}
    trained("evaluate", f"ckpt_path={trained.best}", "split=valid", "output=here")
    results = json.loads((trained.folder / "here" / "results.json").read_text())
    assert results["split"] == "valid" and results["val/loss"] > 0 and "lengths" not in results
    # The lengths of the training are no part of the checkpoint's own evaluation.
    trained("evaluate", f"ckpt_path={trained.best}")
    shown = capsys.readouterr().out
    assert "test/loss" in shown and "Lengths" not in shown
    assert {*trained.run.rglob("*")} == before
    (trained.folder / "file").write_text("")
    with pytest.raises(SystemExit):
        trained("evaluate", f"ckpt_path={trained.best}", "output=file/in")
    assert "name another: output=FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_scored_at_all_is_an_error(trained, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        trained("evaluate", f"ckpt_path={trained.best}", "lengths=[64,128]")
    assert exit.value.code == 3
    assert "None of the lengths can be scored" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        trained("train", "lengths=[64]", "logger=none")
    assert exit.value.code == 3
    assert "needs task=language_modeling, got translation" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_gets_the_numbers_the_table_and_the_picture(trained) -> None:
    trained("evaluate", f"ckpt_path={trained.best}", "lengths=[16,32]", "logger=wandb")
    (written,) = (trained.evaluation / "wandb").glob("offline-run-*")
    media = written / "files" / "media"
    assert list(media.glob("images/loss_by_position*.png"))
    (table,) = media.glob("table/lengths*.json")
    logged = json.loads(table.read_text())
    assert logged["columns"][:2] == ["length", "perplexity"]
    perplexity = trained.results["test/perplexity@32"]
    assert logged["data"][1][:2] == ["32", f"{perplexity:.3f}"]
    (record,) = written.glob("*.wandb")
    # wandb's service closes the file a moment after `finish` has returned.
    while b"test/sliding_loss@32" not in record.read_bytes():
        time.sleep(0.05)


@pytest.mark.slow
def test_diagnostics_are_scored_by_their_answers(train) -> None:
    run = train(
        *["data=recall", "model=tiny", "model.dim=16", "model.layers=1", "data.source.length=16"],
        *["data.source.pairs=2", "data.source.vocabulary=16", "data.source.size=40"],
        *["data.source.valid=12", "data.source.test=12", "data.test_lengths=[32]"],
        *["trainer.max_steps=2", "callbacks=minimal", "logger=none", "lengths=[4,16,32]"],
    )
    results = json.loads((run / "results.json").read_text())
    assert results["lengths"]["scored"] == [16, 32] and results["lengths"]["trained_at"] == 16
    assert "at least 1 pair" in results["lengths"]["refused"]["4"]
    for name in ("loss", "accuracy", "exact_match"):
        assert results[f"test/{name}@16"] == pytest.approx(results[f"test/{name}"], rel=1e-6)
        assert f"test/{name}@32" in results
    assert not (run / "figures" / "loss_by_position.png").exists()


# The length that an encoding stretches from.


def stretched(position: dict, **data: object):
    config = OmegaConf.create(
        {"position": position, "data": {"_target_": "text", **data}, "task": {"name": "x"}}
    )
    assert resolve_defaults(config) == {}
    return config.position.get("original_length", "none")


def test_the_original_length_is_that_of_the_data_unless_it_is_given() -> None:
    assert stretched({"name": "a", "original_length": None}, context_length=48) == 48
    assert stretched({"name": "a", "original_length": 7}, context_length=48) == 7
    assert stretched({"name": "a", "original_length": None}, max_tokens=128) == 128
    assert stretched({"name": "a", "original_length": None}) is None
    assert stretched({"name": "a"}, context_length=48) == "none"


def test_an_attention_takes_the_length_in_training_too() -> None:
    config = OmegaConf.create(
        {
            "position": {"name": "none"},
            "attention": {"name": "cosformer", "max_length": None},
            "cross_attention": None,
            "data": {"_target_": "text", "max_tokens": 128},
        }
    )
    resolve_defaults(config)
    assert config.attention.max_length == 128
    source = {"_target_": "attention_zoo.tasks.data.diagnostics.copy.Copy", "length": 10}
    source |= {"min_length": 5, "vocabulary": 4}
    target = "attention_zoo.tasks.data.diagnostic_data.DiagnosticData"
    assert longest_training_sequence({"_target_": target, "source": source}) == 22


@pytest.fixture
def stretchable(monkeypatch, tmp_path_factory):
    """An encoding with an `original_length`, which it notes, as an entry with a yaml."""
    from hydra.core.config_store import ConfigStore

    from attention_zoo.position.rotary.rotary import RotaryEncoding

    seen: list[int] = []

    class Stretched(RotaryEncoding):
        def __init__(self, *, original_length: int, factor: float = 1.0, **options) -> None:
            super().__init__(**options)
            seen.append(original_length)

    discover()  # All others register before.
    monkeypatch.setattr(POSITION, "_entries", dict(POSITION._entries))
    card = {"name": "stretched", "paper": "", "equation": "", "reference": "", "acts": ("heads",)}
    POSITION.register(**card)(Stretched)
    node = {
        "_target_": "attention_zoo.create_position",
        "_partial_": True,
        "_convert_": "all",
        "name": "stretched",
        "original_length": None,
        "factor": 1.0,
    }
    store = ConfigStore.instance()
    store.store(group="position", name="stretched", node=node)
    folder = tmp_path_factory.mktemp("conf")
    OmegaConf.save(node, folder / "stretched.yaml")
    monkeypatch.setattr(
        "attention_zoo.tasks.configuration.conf_files.config_folder", lambda group, entry: folder
    )
    yield seen
    del store.repo["position"]["stretched.yaml"]


@pytest.mark.slow
def test_an_evaluation_stretches_from_the_length_of_the_training(
    stretchable, train, capsys
) -> None:
    run = train(*TINY, "position=rotary", "logger=none", "test=false")
    program = Trained(folder=run.parents[3], run=run)
    ckpt = f"ckpt_path={run / 'checkpoints' / 'best.ckpt'}"
    # The windows of an evaluation are no training length.
    program("evaluate", ckpt, "position=stretched", "data.context_length=32", "position.factor=4")
    assert {*stretchable} == {16}
    stretchable.clear()
    program("evaluate", ckpt, "position=stretched", "position.original_length=24", "lengths=[32]")
    assert {*stretchable} == {24}
    assert (program.evaluation / "results.json").exists()


def test_entries_without_a_training_have_a_length_too(stretchable) -> None:
    assert (
        entry_config("position", "stretched", heads=2)["original_length"] == DEFAULT_TRAINING_LENGTH
    )
