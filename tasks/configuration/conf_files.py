"""Read single files of conf, of the zoo and its plugins, without composing a config or torch."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.tasks.task_spec import TASKS
from attention_zoo.zoo import ATTENTION, POSITION

SYMBOL_TOKENIZER = "attention_zoo.tasks.data.tokenizers.SymbolTokenizer.train"
# Groups that every run needs a choice of.
REQUIRED = (
    "task",
    "model",
    "attention",
    "tokenizer",
    "data",
    "optimizer",
    "schedule",
    "decoding",
    "trainer",
)
# Groups of any number of named objects; null stands for none.
COLLECTIONS = ("callbacks", "logger")
DEFAULT_TRAINING_LENGTH = 512  # tokens, of an entry that is not trained
# Options that depend on the length that the model is trained at, which null stands for.
TRAINING_LENGTH_OPTIONS = ("original_length", "max_length")


def list_choices(group: str) -> list[str]:
    """Return the names of all choices of a group, such as small/scan in a folder of it."""
    names: list[str] = []
    for entry in (files("attention_zoo.conf") / group).iterdir():
        if entry.is_dir():
            names += [f"{entry.name}/{x}" for x in list_choices(f"{group}/{entry.name}")]
        else:
            names.append(Path(entry.name).stem)
    return sorted(names)


def choice_target(group: str, choice: str) -> str | None:
    """Return the `_target_` of a choice; None if there is no such choice."""
    file = files("attention_zoo.conf") / group / f"{choice}.yaml"
    if not file.is_file():
        return None
    target = re.search(r"^_target_: (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return target and target[1]


def data_task(choice: str) -> str | None:
    """Return the one task that can be trained on a choice of data; None if that is unknown."""
    target = choice_target("data", choice)
    return next((name for name, task in TASKS.items() if target in task.data_modules), None)


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
    for option in TRAINING_LENGTH_OPTIONS:
        if config.get(option, ...) is None:
            config[option] = DEFAULT_TRAINING_LENGTH
    return config


def entry_options(group: str, name: str, *, heads: int) -> dict[str, Any]:
    """Return the constructor arguments in the config of an entry."""
    config = entry_config(group, name, heads=heads)
    return {key: x for key, x in config.items() if key != "name" and not key.startswith("_")}


def show(value: Any) -> str:
    """Return a value as the command line writes it."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
