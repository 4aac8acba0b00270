"""Read the config of an entry of the zoo without composing a whole config."""

import importlib
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.zoo import ATTENTION, POSITION

# The training length, in tokens, of an entry that is not trained.
DEFAULT_TRAINING_LENGTH = 512


def config_folder(group: str, entry: type) -> Path:
    """Return the folder of a group's yaml files in the package of an entry, ours or a plugin."""
    package = importlib.import_module(entry.__module__.partition(".")[0])
    assert package.__file__ is not None
    return Path(package.__file__).parent / "conf" / group


def entry_config(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """Return the config of an entry, for a model with `heads`, trained at the default length."""
    entry = ATTENTION[name] if group == "attention" else POSITION[name]
    file = config_folder(group, entry) / f"{name}.yaml"
    assert file.is_file(), f"{name} has no {file}"
    composed = OmegaConf.create({"model": {"heads": heads}, "entry": OmegaConf.load(file)})
    config = OmegaConf.to_container(composed.entry, resolve=True)
    assert isinstance(config, dict)
    if config.get("original_length", ...) is None:
        config["original_length"] = DEFAULT_TRAINING_LENGTH
    return {str(key): value for key, value in config.items()}


def entry_options(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """Return the constructor arguments in the config of an entry."""
    return {
        key: value
        for key, value in entry_config(group, name, heads=heads).items()
        if key not in ("_target_", "_partial_", "_convert_", "name")
    }
