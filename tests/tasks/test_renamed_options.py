"""Names of version 0.1: options are refused with the new name, checkpoints are translated."""

from importlib import import_module

import pytest
import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.renamed_options import (
    RENAMED_OPTIONS,
    RENAMED_TARGETS,
    refuse_renamed_keys,
    refuse_renamed_options,
    upgrade_checkpoint,
)
from attention_zoo.tasks.training.callbacks.averaging import CheckpointAveraging


def nest(name: str, value: object) -> dict:
    """Return nested dictionaries with the value at a dotted name."""
    first, _, rest = name.partition(".")
    return {first: nest(rest, value) if rest else value}


@pytest.mark.parametrize(("old", "new"), RENAMED_OPTIONS.items())
def test_an_old_option_is_refused_with_its_new_name(old, new) -> None:
    for override in (f"{old}=1", f"+{old}=1", f"hydra.sweeper.params.{old}=1"):
        with pytest.raises(UserError, match=f"{old} is called {new} now"):
            refuse_renamed_options([override])
    with pytest.raises(UserError, match=f"{old} is called {new} now"):
        refuse_renamed_keys(nest(old, 1))


@pytest.mark.parametrize(("old", "new"), RENAMED_TARGETS.items())
def test_an_old_target_is_refused_with_its_new_name(old, new) -> None:
    config = {"callbacks": {"mine": {"_target_": f"{old}.make"}}}
    with pytest.raises(UserError, match=f"^{old}.make is called {new}.make now"):
        refuse_renamed_keys(config)


@pytest.mark.parametrize("target", RENAMED_TARGETS.values())
def test_new_targets_exist(target) -> None:
    try:
        import_module(target)
    except ModuleNotFoundError:
        module, _, name = target.rpartition(".")
        assert hasattr(import_module(module), name)


def test_a_checkpoint_of_version_0_1_gets_the_new_names() -> None:
    layer = "decoder.layers.0.self_attention.attention"
    config = {
        "model": {"hidden": 8},
        "position": {"_target_": "attention_zoo.factory.position_factory", "places": 64},
        "data": {
            "_target_": "attention_zoo.tasks.data.language.LanguageData",
            "context": 16,
            "batches": {"_target_": "attention_zoo.tasks.data.batches.RandomBlocks"},
        },
    }
    checkpoint = {
        "attention_zoo": {"version": "0.1.0", "config": config},
        "state_dict": {
            f"{layer}.{name}": torch.tensor(float(number))
            for number, name in enumerate(("turn.0.weight", "encoding.place_bias", "query.weight"))
        },
    }
    upgrade_checkpoint(checkpoint)
    data = "attention_zoo.tasks.data"
    assert checkpoint["attention_zoo"]["config"] == {
        "model": {"ffn_dim": 8},
        "position": {"_target_": "attention_zoo.factory.position_factory", "num_positions": 64},
        "data": {
            "_target_": f"{data}.language_data.LanguageData",
            "context_length": 16,
            "batches": {"_target_": f"{data}.samplers.RandomBlockSampler"},
        },
    }
    assert {name: value.item() for name, value in checkpoint["state_dict"].items()} == {
        f"{layer}.householder.0.weight": 0,
        f"{layer}.encoding.query_position_bias": 1,
        f"{layer}.query.weight": 2,
    }
    assert not checkpoint["attention_zoo"]["version"].startswith("0.1.")
    before = {**checkpoint["state_dict"]}
    upgrade_checkpoint(checkpoint)
    assert checkpoint["state_dict"] == before


def test_the_averaged_weights_of_version_0_1_get_the_new_names(tmp_path) -> None:
    averaging = CheckpointAveraging(dirpath=tmp_path)
    averaging.snapshots.extend({"attention.turn.weight": torch.tensor(n)} for n in (1.0, 2.0))
    checkpoint = {
        "attention_zoo": {"version": "0.1.0", "config": {}},
        "state_dict": {},
        "callbacks": {averaging.state_key: averaging.state_dict()},
    }
    upgrade_checkpoint(checkpoint)
    snapshots = checkpoint["callbacks"][averaging.state_key]["snapshots"]
    assert snapshots == [{"attention.householder.weight": n} for n in (1, 2)]
