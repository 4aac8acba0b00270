"""A model resized to its baseline agrees with it, and is a model like any other."""

import io
import json

import pytest
from rich.console import Console

from attention_zoo.errors import Unsupported
from attention_zoo.tasks.configuration.build import parameter_counts
from attention_zoo.tasks.sweeps.matching import baseline_config, match_baseline, matched_cost
from attention_zoo.tasks.training.checkpoints import read_checkpoint
from attention_zoo.tasks.training.task import load_task
from tests.conformance.cases import mark_exhaustive
from tests.tasks.test_costs import SIZES, composed, data, pair, text

WIDE = ["model.dim=32", "model.heads=4", "model.ffn_dim=128"]


def resize(by, *overrides):
    """Return the resized config, the match, what was printed, and the costs of both."""
    config = composed(*WIDE, f"match={by}", *overrides)
    example = data(pair if config["task"]["name"] == "translation" else text)
    target = matched_cost(baseline_config(config), example)
    out = io.StringIO()
    match = match_baseline(config, example, Console(file=out, width=200))
    return config, match, out.getvalue(), target, matched_cost(config, example)


@pytest.mark.parametrize(
    "by, overrides",
    mark_exhaustive(
        # Of a kind: the task, but of parameters for one and of operations for the other.
        ((by, overrides), by if ("task=language_modeling" in overrides) == (by == "flops") else "")
        for by in ("parameters", "flops")
        for overrides in (
            ["attention=gated"],
            ["attention=multi_query"],
            ["attention=tensor_product", "task=language_modeling"],
            ["attention=state_space_dual", "task=language_modeling", "model.ffn_dim=512"],
            ["attention=linear", "model.activation=swiglu"],
            ["attention@cross_attention=additive", "position=learned", "position.max_length=64"],
            ["model.norm=layer", "model.tie_embeddings=false", "attention=multi_head_latent"],
        )
    ),
)
def test_the_model_agrees_with_its_baseline(by, overrides):
    config, match, _, target, cost = resize(by, *overrides)
    assert abs(cost - target) <= 0.01 * target
    assert match == {"by": by, "target": target, "ffn_dim": config["model"]["ffn_dim"]}


@pytest.mark.parametrize(
    "size", mark_exhaustive((size, "model") for size in ("tiny", "small", "medium", "base"))
)
@pytest.mark.parametrize("task", ["translation", "language_modeling"])
def test_every_size_of_model_can_be_matched(size, task):
    config = composed(
        f"task={task}", "attention=multi_query", "match=parameters", sizes=[f"model={size}"]
    )
    before, target = config["model"]["ffn_dim"], matched_cost(baseline_config(config), data(text))
    match_baseline(config, data(text), Console(file=io.StringIO()))
    assert config["model"]["ffn_dim"] > before
    assert abs(matched_cost(config, data(text)) - target) <= 0.01 * target


def test_a_lighter_attention_gives_to_the_feed_forward_and_a_heavier_one_takes():
    lighter, _, line, target, parameters = resize("parameters", "attention=multi_query")
    assert lighter["model"]["ffn_dim"] > 128
    assert line == (
        f"match=parameters: feed-forward 128 → {lighter['model']['ffn_dim']}, {parameters:,} "
        f"parameters, the baseline has {target:,}\n"
    )
    heavier, *_ = resize("parameters", "attention=gated")
    assert heavier["model"]["ffn_dim"] < 128


def test_what_agrees_is_left_alone():
    config, match, line, *_ = resize("parameters", "attention=multi_head", "position=alibi")
    assert config["model"]["ffn_dim"] == match["ffn_dim"] == 128
    assert "feed-forward stays 128" in line


def test_a_round_width_is_taken_where_it_is_near_enough():
    config, *_ = resize("parameters", "attention=multi_query", "model.dim=64")
    assert config["model"]["ffn_dim"] % 8 == 0


def test_the_baseline_can_be_another():
    config, _, _, target, cost = resize(
        "parameters", "baseline.attention=multi_query", "baseline.position=none"
    )
    assert baseline_config(config)["attention"]["name"] == "multi_query"
    assert config["model"]["ffn_dim"] < 128
    assert abs(cost - target) <= 0.01 * target


@pytest.mark.parametrize(
    ("attention", "position"), [("multi_head", "rotary"), ("additive", "sinusoidal")]
)
def test_the_baselines_encoding_is_the_default_of_its_attention(attention, position):
    config = composed("match=parameters", f"baseline.attention={attention}", "position=alibi")
    assert baseline_config(config)["position"]["name"] == position


def test_what_no_feed_forward_makes_up_for_is_refused_with_the_figures():
    with pytest.raises(
        Unsupported, match=r"match=parameters finds no .* with a width of 8, .*Raise"
    ):
        resize("parameters", "position=learned", "position.max_length=4096", "model.ffn_dim=40")


@pytest.mark.slow
def test_a_matched_run_is_as_any_other(train):
    options = [*SIZES[:-1], "tokenizer=characters", "match=parameters", "attention=gated"]
    options += ["data.source.size=60", "data.source.valid=8", "data.source.test=8"]
    options += ["callbacks=minimal", "logger=none", "test=false", "trainer.accelerator=cpu"]
    run = train(*options, "trainer.max_steps=1")
    results = json.loads((run / "results.json").read_text())
    width, target = results["matched"]["ffn_dim"], results["matched"]["target"]
    assert width < 32 and abs(results["parameters"] - target) <= 0.01 * target
    assert f"ffn_dim: {width}\n" in (run / "config.yaml").read_text()
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    config = checkpoint["attention_zoo"]["config"]
    assert config["model"]["ffn_dim"] == width
    model = load_task(checkpoint, config).model
    assert parameter_counts(model)["parameters"] == results["parameters"]
    last = run / "checkpoints" / "last.ckpt"
    resumed = train(*options, "trainer.max_steps=2", f"ckpt_path={last}")
    assert json.loads((resumed / "results.json").read_text())["matched"] == results["matched"]
