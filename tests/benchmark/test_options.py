"""Options of a benchmark that are out of range, and those of trainings, are refused."""

from importlib.resources import files
from typing import Any

import pytest
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.benchmark.options import check_benchmark_options
from attention_zoo.tasks.configuration.composition import command_yaml, parse_command
from attention_zoo.tasks.configuration.overrides import is_used_in_benchmark

DEFAULTS = OmegaConf.create(files("attention_zoo.conf").joinpath("benchmark.yaml").read_text())


def check(**options: Any) -> None:
    sweep = {"hydra": {"sweep": {"dir": "folder"}}}
    check_benchmark_options(OmegaConf.merge(DEFAULTS, sweep, options))


def test_the_defaults_are_legal() -> None:
    check()
    check(lengths=[8], decode_batch_sizes=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, "lengths must have a length"),
        ({"lengths": [64, 64]}, "lengths must be different whole numbers"),
        ({"lengths": [0]}, "of at least 1, got"),
        ({"lengths": ["a"]}, "lengths must be a list of whole numbers"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"decode_tokens": 0}, "decode_tokens must be at least 1"),
        ({"decode_tokens": 64}, "decode_tokens must be below the shortest length"),
        ({"decode_batch_sizes": [0]}, "decode_batch_sizes must be different whole numbers"),
        ({"max_linear_exponent": 0}, "max_linear_exponent must be above 0"),
        ({"max_linear_exponent": 1.2, "lengths": [64]}, "needs two lengths or more"),
        ({"output": ""}, "output must not be empty"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(**options)


@pytest.mark.parametrize(
    "override",
    [
        *("data=recall", "data.context_length=64", "optimizer=adamw", "optimizer.lr=1"),
        *("trainer.max_steps=5", "logger=wandb", "callbacks=none", "match=flops", "init_from=x"),
        *("hydra.run.dir=x", "hydra/launcher=joblib", "task.non_finite=skip", "stride=4"),
        *("decoding=beam", "jobs=2", "~logger"),
    ],
)
def test_options_of_trainings_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="would have no effect on benchmark"):
        parse_command("benchmark", ["attention=linear", override])


@pytest.mark.parametrize(
    "override",
    [
        *("attention=a,b", "attention.window=8", "attention@cross_attention=linear"),
        *("attention@stack.a=gated_delta", "stack.pattern=aab", "position=none"),
        *("model.share_kv=[null,0]", "tokenizer.vocabulary_size=500", "compile=true", "seed=2"),
        *("trainer=gpu", "trainer.precision=bf16-mixed", "task=translation", "experiment=recall"),
        *("hydra.sweep.dir=x", "task.label_smoothing=0.1", "cross_attention.bias=true"),
    ],
)
def test_options_of_models_and_devices_are_taken(override: str) -> None:
    assert is_used_in_benchmark(override)


def test_a_language_model_is_measured_unless_another_task_is_chosen() -> None:
    assert "task=language_modeling" in parse_command("benchmark", []).overrides
    for chosen in ("task=translation", "experiment=multi30k"):
        overrides = parse_command("benchmark", [chosen]).overrides
        assert not {"task=language_modeling"} & {*overrides}
    assert {"lengths", "rounds", "output"} <= {*command_yaml("benchmark")}
