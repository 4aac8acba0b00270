"""A training starts from the weights, the model and the tokenizer of a checkpoint."""

import json
from functools import partial

import pytest
import torch

from attention_zoo import create_attention, create_position
from attention_zoo.errors import Unsupported
from attention_zoo.models import LanguageModel
from attention_zoo.tasks.commands import show
from attention_zoo.tasks.training.fine_tuning import freeze_parameters
from tests.conformance.cases import mark_exhaustive
from tests.conftest import train_in

SIZES = (
    *("data.source.size=60", "data.source.valid=5", "data.source.test=5", "test=false"),
    *("data.tokens_per_batch=256", "callbacks=minimal", "logger=csv", "trainer.max_steps=2"),
)
MODEL = ("model=tiny", "model.dim=16", "model.heads=2", "model.ffn_dim=24", "attention=linear")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small training, with an attention of its own for one role."""
    options = [*SIZES, *MODEL, "tokenizer=characters", "attention@cross_attention=additive"]
    with pytest.MonkeyPatch.context() as patch:
        return train_in(tmp_path_factory.mktemp("trained"), patch, *options)


def state(path):
    return torch.load(path, weights_only=True)


def test_it_starts_from_the_weights_of_the_model_and_of_the_tokenizer(trained, train, capsys):
    first = state(trained / "checkpoints" / "best.ckpt")
    run = train(
        *SIZES,
        f"init_from={trained}/checkpoints/best.ckpt",
        *("data.source.target=de", "optimizer=adamw", "optimizer.lr=1e-30", "model.dropout=0.5"),
        *("optimizer.weight_decay=0", "trainer.precision=bf16-mixed"),
    )
    assert "init_from=" in capsys.readouterr().out
    second = state(run / "checkpoints" / "best.ckpt")
    assert second["attention_zoo"]["tokenizer"] == first["attention_zoo"]["tokenizer"]
    assert second["state_dict"].keys() == first["state_dict"].keys()
    for name, weights in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weights, rtol=0, atol=0)
    config, before = (x["attention_zoo"]["config"] for x in (second, first))
    for group in ("attention", "cross_attention", "position", "tokenizer", "task"):
        assert config[group] == before[group], group
    assert config["model"] == {**before["model"], "dropout": 0.5}
    assert config["choices"]["attention@cross_attention"] == "additive"
    results = json.loads((run / "results.json").read_text())
    assert results["init_from"]["missing"] == results["init_from"]["extra"] == []


@pytest.mark.slow
def test_weights_that_do_not_fit_are_listed_and_refused_unless_strict_is_false(
    trained, train, capsys
):
    start = [*SIZES, f"init_from={trained}/checkpoints/best.ckpt", "model.layers=3"]
    start += ["model.ffn_dim=32"]
    with pytest.raises(SystemExit) as refused:
        train(*start)
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "missing (encoder.layers.2" in message and "strict=false" in message
    assert "of another shape (" in message
    run = train(*start, "strict=false")
    assert "without" in capsys.readouterr().out
    record = json.loads((run / "results.json").read_text())["init_from"]
    assert all("layers.2" in name for name in record["missing"]) and record["missing"]
    assert all("feed_forward" in name for name in record["of_another_shape"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer=bytes", "leave tokenizer out"),
        ("match=parameters", "leave match out"),
        ("attention=gated", "has other weights"),
        ("task=language_modeling", "leave task out"),
        ("freeze=[encodr.*]", "Did you mean encoder.*"),
        ("freeze=['*']", "leaves no parameter"),
        ("freeze=encoder", "must be a list"),
    ],
)
def test_what_cannot_be_is_refused(trained, train, capsys, override, message):
    with pytest.raises(SystemExit):
        train(*SIZES, f"init_from={trained}/checkpoints/best.ckpt", override)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "optimizer", mark_exhaustive((name, "optimizer") for name in ("muon", "adamw"))
)
def test_frozen_parameters_stay_as_they_are(trained, train, capsys, optimizer):
    first = state(trained / "checkpoints" / "best.ckpt")["state_dict"]
    run = train(
        *SIZES,
        f"init_from={trained}/checkpoints/best.ckpt",
        f"optimizer={optimizer}",
        "freeze=[encoder.*,'*.norm.*']",
    )
    assert "frozen: " in capsys.readouterr().out
    frozen = json.loads((run / "results.json").read_text())["frozen"]
    second = state(run / "checkpoints" / "last.ckpt")["state_dict"]
    same = {name.removeprefix("model.") for name in first if second[name].equal(first[name])}
    assert same == {*frozen}


def test_a_shared_parameter_is_frozen_under_either_name():
    attention = partial(create_attention, "multi_head", heads=2)
    options = {"attention": attention, "position": partial(create_position, "rotary")}
    for pattern in ("embedding.*", "head.*"):
        model = LanguageModel(vocabulary_size=7, dim=8, ffn_dim=8, layers=1, **options)
        assert freeze_parameters(model, [pattern]) == ["embedding.weight"]


@pytest.mark.slow
def test_a_fine_tuning_is_resumed_by_the_same_command(trained, train):
    start = [*SIZES, f"init_from={trained}/checkpoints/best.ckpt", "freeze=[encoder.*]"]
    run = train(*start)
    resumed = train(*start, f"ckpt_path={run}/checkpoints/last.ckpt", "trainer.max_steps=4")
    assert state(resumed / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_show_has_the_model_that_would_be_fine_tuned(trained, capsys):
    show.run(["stack=uniform", f"init_from={trained}/checkpoints/best.ckpt"])
    shown = capsys.readouterr().out
    show.run(["stack=uniform", *MODEL, "attention@cross_attention=additive"])
    assert shown == capsys.readouterr().out


def test_show_builds_no_code_of_others(trained, tmp_path):
    checkpoint = state(trained / "checkpoints" / "best.ckpt")
    checkpoint["attention_zoo"]["config"]["model"]["_target_"] = "os.system"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(Unsupported, match=r"A checkpoint may build .*got _target_: os\.system"):
        show.run(["stack=uniform", f"init_from={tmp_path}/other.ckpt"])
