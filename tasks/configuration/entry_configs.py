"""Read the config of an entry of the zoo without composing a whole config."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.zoo import ATTENTION, POSITION

DEFAULT_TRAINING_LENGTH = 512  # tokens, of an entry that is not trained


def config_folder(group: str, entry: type) -> Path:
    """Return the folder of a group's yaml files in the package of an entry, ours or a plugin."""
    return Path(str(files(entry.__module__.partition(".")[0]))) / "conf" / group


def entry_config(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """Return the config of an entry, for a model with `heads`, trained at the default length."""
    entry = ATTENTION[name] if group == "attention" else POSITION[name]
    file = config_folder(group, entry) / f"{name}.yaml"
    assert file.is_file(), f"{name} has no {file}"
    composed = OmegaConf.create({"model": {"heads": heads}, "entry": OmegaConf.load(file)})
    config: Any = OmegaConf.to_container(composed.entry, resolve=True)
    if config.get("original_length", ...) is None:
        config["original_length"] = DEFAULT_TRAINING_LENGTH
    return config


def entry_options(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """Return the constructor arguments in the config of an entry."""
    config = entry_config(group, name, heads=heads)
    return {key: x for key, x in config.items() if key != "name" and not key.startswith("_")}
