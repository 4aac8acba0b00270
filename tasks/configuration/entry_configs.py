"""The zoo's entries as their configs give them, without composing a whole config."""

import importlib
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.zoo import ATTENTION, POSITION

# What stands for the training length, in tokens, where there is no training.
TRAINED_LENGTH = 512


def entry_of(group: str, name: str) -> type:
    return ATTENTION[name] if group == "attention" else POSITION[name]


def config_folder(group: str, entry: type) -> Path:
    """Where the entry's package, ours or a plugin's, keeps the yaml files of a group."""
    package = importlib.import_module(entry.__module__.partition(".")[0])
    assert package.__file__ is not None
    return Path(package.__file__).parent / "conf" / group


def entry_config(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """The entry's yaml, for a model of so many heads, trained at `TRAINED_LENGTH`."""
    file = config_folder(group, entry_of(group, name)) / f"{name}.yaml"
    assert file.is_file(), f"{name} has no {file}"
    whole = OmegaConf.create({"model": {"heads": heads}, "entry": OmegaConf.load(file)})
    config = OmegaConf.to_container(whole.entry, resolve=True)
    assert isinstance(config, dict)
    if config.get("original_length", ...) is None:
        config["original_length"] = TRAINED_LENGTH
    return {str(key): value for key, value in config.items()}


def entry_options(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """The constructor's arguments among them."""
    return {
        key: value
        for key, value in entry_config(group, name, heads=heads).items()
        if key not in ("_target_", "_partial_", "_convert_", "name")
    }
