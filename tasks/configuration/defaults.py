"""Choose what a composed config leaves open and what its other parts decide."""

from collections.abc import Mapping
from datetime import datetime
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attention_zoo.tasks.configuration.build import attention_by_role, instantiate
from attention_zoo.tasks.configuration.conf_files import TRAINING_LENGTH_OPTIONS, entry_config
from attention_zoo.tasks.configuration.option_checks import node_parameters
from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.task_spec import DIAGNOSTIC_DATA, task_spec
from attention_zoo.zoo import ATTENTION

# Options of the Trainer that this program reads.
TRAINER_OPTIONS = (
    "max_steps",
    "max_epochs",
    "precision",
    "log_every_n_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
)


def resolve_defaults(
    config: DictConfig, training_config: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Choose a positional encoding where none was chosen; return the choice by group.

    `original_length` or `max_length` is null in the yaml of an entry that depends on the length
    that the model is trained at; it becomes that length: by `training_config`, if the model comes
    from a checkpoint.
    """
    if "position" not in config:
        return {}
    choices = {} if config["position"] is not None else resolve_position(config)
    data: Any = OmegaConf.to_container(config["data"], resolve=True)
    nodes = [name for name in config if name == "position" or str(name).endswith("attention")]
    for node, option in product(nodes, TRAINING_LENGTH_OPTIONS):
        entry = config[node]
        if isinstance(entry, DictConfig) and option in entry and entry[option] is None:
            entry[option] = longest_training_sequence(
                training_config["data"] if training_config else data
            )
    return choices


def resolve_position(config: DictConfig | dict[str, Any]) -> dict[str, str]:
    """Choose rotary positions, or sinusoidal ones if an attention cannot take those."""
    roles = task_spec(config).attention_roles
    accepted = [
        ATTENTION.card(chosen["name"]).positions
        for node, chosen in attention_by_role(config).items()
        if roles[node] != "cross"
    ]
    name = "rotary" if all("heads" in kinds for kinds in accepted) else "sinusoidal"
    config["position"] = entry_config("position", name, heads=config["model"]["heads"])
    return {"position": name}


def longest_training_sequence(data: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that data are trained on, in tokens; None if it is unknown."""
    if data["_target_"] == DIAGNOSTIC_DATA:
        return instantiate(data["source"]).tokens_per_sequence
    return data.get("context_length") or data.get("max_tokens")


def resolve_output_dir(config: DictConfig) -> None:
    """Give an evaluation that writes files a folder in the run of its checkpoint."""
    if "output" not in config or not config.ckpt_path or config.output is not None:
        return
    if config.lengths or config.logger:
        run = RunFolder.of_checkpoint(str(config.ckpt_path))
        config.output = str(run.evaluations / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")


def resolve_intervals(config: dict[str, Any]) -> None:
    """Set options in a resolved config that others decide, so that it says what is used.

    An option of the Trainer that was left out, as by `~trainer.max_steps`, has Lightning's default.
    A run shorter than the interval of logging logs once, at its end. Several checkpoints of a
    `ModelCheckpoint` get names of their own: under one name each would replace the one before.
    """
    trainer = config["trainer"]
    parameters, _ = node_parameters(trainer, "trainer")
    for name in TRAINER_OPTIONS:
        trainer.setdefault(name, parameters[name].default if name in parameters else None)
    if 0 < trainer["max_steps"] < (trainer["log_every_n_steps"] or 0):
        trainer["log_every_n_steps"] = trainer["max_steps"]
    for node in (config.get("callbacks") or {}).values():
        if node is None or not node["_target_"].endswith("ModelCheckpoint"):
            continue
        name = node.get("filename")
        if node.get("save_top_k", 1) not in (0, 1) and name is not None and "{" not in name:
            node |= {"filename": f"{name}-{{step}}", "auto_insert_metric_name": False}
