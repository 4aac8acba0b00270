"""The names that version 0.2 changed: refused on the command line and in files, with the new name.

A checkpoint of version 0.1 is translated when it is read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.resolved_config import find_targets

# By the name on the command line.
RENAMED_OPTIONS = {
    "model.hidden": "model.ffn_dim",
    "data.context": "data.context_length",
    "data.noise": "data.length_jitter",
    "data.workers": "data.num_workers",
    "data.source.shortest": "data.source.min_length",
    "data.source.ignore": "data.source.ignore_fraction",
    "data.source.share": "data.source.valid_fraction",
    "data.source.files.shares": "data.source.files.fractions",
    "position.places": "position.num_positions",
    "schedule.floor": "schedule.min_lr_ratio",
    "callbacks.progress.plain_seconds": "callbacks.progress.line_seconds",
    "ckpt": "ckpt_path",
    "into": "output",
}
# By the command, the flags that are options now.
REPLACED_FLAGS = {
    "list": {
        "--pairs": "pairs=all or pairs=NAME",
        "--markdown": "format=markdown",
        "--into": "output=FILE",
    },
    "figures": {"--into": "output=FOLDER"},
    "report": {"--baseline": "baseline=LABEL", "--into": "output=FOLDER"},
}
# Modules and functions of the tasks that a `_target_` names.
RENAMED_TARGETS = {
    f"attention_zoo.tasks.{old}": f"attention_zoo.tasks.{new}"
    for old, new in {
        "callbacks": "training.callbacks",
        "data.batches.RandomBlocks": "data.samplers.RandomBlockSampler",
        "data.batches.ShuffledBlocks": "data.samplers.ShuffledBlockSampler",
        "data.diagnostic": "data.diagnostic_data",
        "data.language": "data.language_data",
        "data.translation": "data.translation_data",
        "language_modeling": "training.language_modeling",
        "optimizers": "training.optimizers",
        "schedules": "training.schedules",
        "translation": "training.translation",
        "wandb_runs": "training.loggers.wandb_runs",
    }.items()
}
# Parts of the names of parameters.
RENAMED_PARAMETERS = {
    "encoding.content_bias": "encoding.query_content_bias",
    "encoding.place_bias": "encoding.query_position_bias",
    "attention.place_vectors": "attention.position_vectors",
    "attention.place_bias": "attention.position_bias",
    "attention.turn": "attention.householder",
    "attention.turn_convolution": "attention.householder_convolution",
    "attention.earlier": "attention.shift_shares",
    "attention.combined_keys": "attention.key_combinations",
    "attention.combined_values": "attention.value_combinations",
}


def refuse_renamed_options(overrides: Sequence[str]) -> None:
    """Refuse overrides that use an old name."""
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0].removeprefix("hydra.sweeper.params.")
        if name in RENAMED_OPTIONS:
            raise UserError(f"{name} is called {RENAMED_OPTIONS[name]} now.")


def refuse_renamed_keys(config: Mapping[str, Any]) -> None:
    """Refuse a composed config in which a file, such as a user's experiment, has an old name."""
    names = [(old, new) for _, old, new in find_renamed_keys(config)]
    names += [(old, rename_parts(old, RENAMED_TARGETS)) for old in find_targets(config)]
    for old, new in names:
        if old != new:
            raise UserError(
                f"{old} is called {new} now; a file that was composed has the old name."
            )


def find_renamed_keys(config: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the node, the old and the new name of each option that has its old name."""
    for old, new in RENAMED_OPTIONS.items():
        node, (*path, key) = config, old.split(".")
        for part in path:
            node = node.get(part) or {}
        # The options of what plugins build are their own.
        if key in node and node.get("_target_", "attention_zoo").startswith("attention_zoo"):
            yield node, old, new


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Give what a checkpoint of version 0.1 holds the names of this version, in place."""
    contents = checkpoint["attention_zoo"]
    if not contents["version"].startswith("0.1."):
        return
    for node, old, new in find_renamed_keys(contents["config"]):
        node[new.rpartition(".")[2]] = node.pop(old.rpartition(".")[2])
    contents["config"] = rename_targets(contents["config"])
    averaging = checkpoint.get("callbacks", {}).get("CheckpointAveraging", {})
    for weights in (checkpoint["state_dict"], *averaging.get("snapshots", ())):
        for name in list(weights):
            weights[rename_parts(name, RENAMED_PARAMETERS)] = weights.pop(name)
    contents["version"] = version("attention-zoo")


def rename_targets(node: Any) -> Any:
    """Return a config with the new name of every `_target_`."""
    if isinstance(node, dict):
        renamed = {key: rename_targets(value) for key, value in node.items()}
        if isinstance(node.get("_target_"), str):
            renamed["_target_"] = rename_parts(node["_target_"], RENAMED_TARGETS)
        return renamed
    return [rename_targets(value) for value in node] if isinstance(node, list) else node


def rename_parts(name: str, renamed: Mapping[str, str]) -> str:
    """Replace the parts of a dotted name that have a new name."""
    for old, new in renamed.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name
