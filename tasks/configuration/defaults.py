"""Choose what a composed config leaves open and what its other parts decide."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain, product
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.build import instantiate
from attention_zoo.tasks.configuration.conf_files import TRAINING_LENGTH_OPTIONS, entry_config
from attention_zoo.tasks.configuration.option_checks import node_parameters
from attention_zoo.tasks.configuration.overrides import override_values
from attention_zoo.tasks.configuration.stacks import (
    PATTERNS,
    ROLE_PATTERNS,
    Branch,
    branches_by_role,
    check_kinds,
    is_mixed,
    kinds_of,
    pattern_option,
    period,
    role_elements,
    role_pattern,
)
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
    config: DictConfig,
    overrides: Sequence[str] = (),
    training_config: Mapping[str, Any] | None = None,
) -> dict[str, str | None]:
    """Choose a positional encoding where none was chosen; return the choices by group.

    The patterns of a stack become lists with the kind of each layer. `original_length` or
    `max_length` is null in the yaml of an entry that depends on the length that the model is
    trained at; it becomes that length: by `training_config`, if the model comes from a checkpoint.
    `overrides` are those of the command line.
    """
    if "position" not in config:
        return {}
    choices: dict[str, str | None] = {}
    if is_mixed(config):
        choices = resolve_stack(config, override_values(overrides))
    elif config["position"] is None:
        choices = resolve_position(config)
    data: Any = OmegaConf.to_container(config["data"], resolve=True)
    kinds = [x for x in (config.get("stack") or {}).values() if isinstance(x, DictConfig)]
    nodes = [config["position"], *(x.get("position") for x in kinds), *kinds]
    nodes += [config[name] for name in config if str(name).endswith("attention")]
    for entry, option in product(nodes, TRAINING_LENGTH_OPTIONS):
        if isinstance(entry, DictConfig) and option in entry and entry[option] is None:
            entry[option] = longest_training_sequence(
                training_config["data"] if training_config else data
            )
    return choices


def resolve_position(config: DictConfig | dict[str, Any]) -> dict[str, str | None]:
    """Choose rotary positions, or sinusoidal ones if an attention cannot take those."""
    name = "rotary" if all(map(takes_rotary, self_attention(config))) else "sinusoidal"
    config["position"] = entry_config("position", name, heads=config["model"]["heads"])
    return {"position": name}


def self_attention(config: Mapping[str, Any]) -> list[Branch]:
    """Return the different mechanisms of self-attention in a model."""
    by_role = branches_by_role(config)
    return [x for role, parts in by_role.items() if role != "cross_attention" for x in parts]


def takes_rotary(branch: Branch) -> bool:
    """Return whether an attention can take an encoding that rotates queries and keys."""
    return "heads" in ATTENTION.card(branch.attention["name"]).positions


def resolve_stack(config: DictConfig, written: Mapping[str, str]) -> dict[str, str | None]:
    """Write out which kind each layer has, and choose their encodings; return choices by group.

    A layout needs a number of layers: the model gets as many, where neither that number nor a
    pattern is written. Kinds that no layer has become null, and so do an `attention` and a
    `position` that none has.

    Raises:
        UserError: one of these two was written, or what else has no effect.
    """
    stack = config["stack"]
    check_kinds(stack)
    patterns = {role: role_pattern(config, role) for role in task_spec(config).attention_roles}
    if not written.keys() & {"model.layers", "stack.pattern"}:
        own = [x for role, x in patterns.items() if f"stack.{ROLE_PATTERNS[role]}" not in written]
        needed = [period(x) for x in own if x is not None]
        config["model"]["layers"] = max([config["model"]["layers"], *needed])
    refuse_unused_patterns(config, written)
    for role, pattern in patterns.items():
        if pattern is not None:
            stack[ROLE_PATTERNS[role]] = role_elements(config, role)
    used = {x.path for x in chain(*branches_by_role(config).values())}
    for letter in kinds_of(stack):
        if f"stack.{letter}" not in used:
            refuse_unused_kind(letter, written)
            stack[letter] = None
    choices = resolve_positions(config)
    without_effect = [] if "attention" in used else ["attention"]
    if config["position"] is not None and not any(
        x.position is config["position"] for x in self_attention(config)
    ):
        without_effect.append("position")
    for group in without_effect:
        for name in written:
            if name == group or name.startswith(f"{group}."):
                kind = "stack.a.position" if group == "position" else "stack.a"
                instead = f"{group}@{kind}" if name == group else name.replace(group, kind, 1)
                raise UserError(
                    f"{name}={written[name]} would have no effect, as each kind of layers has its "
                    f"own {group}; give {instead}={written[name]}, and likewise for the other "
                    "kinds."
                )
        config[group] = None
        choices[group] = None
    return choices


def refuse_unused_patterns(config: DictConfig, written: Mapping[str, str]) -> None:
    """Refuse a pattern that was written and that no role of the task reads."""
    roles = [x for x in task_spec(config).attention_roles if role_pattern(config, x) is not None]
    read = [pattern_option(config, role) for role in roles]
    for option in (f"stack.{x}" for x in PATTERNS):
        if written.get(option, "null") != "null" and option not in read:
            raise UserError(
                f"{option}={written[option]} would have no effect, as no attention of "
                f"task={task_spec(config).name} has its layers from there; leave it out."
            )


def refuse_unused_kind(letter: str, written: Mapping[str, str]) -> None:
    """Refuse a kind that was written and that no layer has.

    A written pattern may leave kinds out, so that patterns can be swept.
    """
    kind = f"stack.{letter}"
    mine = [x for x in written if f"{x.rpartition('@')[2]}.".startswith(f"{kind}.")]
    values = [written[x] for x in mine if written[x] != "null"]
    if values and not any(f"stack.{x}" in written for x in PATTERNS):
        raise UserError(
            f"{mine[0]}={values[0]} would have no effect, as no layer has the kind {letter}; give "
            f"a pattern with it, such as stack.pattern=a{letter}."
        )


def resolve_positions(config: DictConfig) -> dict[str, str | None]:
    """Choose an encoding for the kinds of layers without one; return the choice by group.

    That is rotary positions, and none for kinds that cannot take those. Where no kind has an
    encoding or can take rotary positions, all get sinusoidal ones.
    """
    branches = self_attention(config)
    left = [x for x in branches if x.position is None]
    heads = config["model"]["heads"]
    if not left:
        return {}
    name = "rotary" if any(map(takes_rotary, left)) or len(left) < len(branches) else "sinusoidal"
    for branch in left:
        if name == "rotary" and not takes_rotary(branch) and branch.path.startswith("stack."):
            kind = config["stack"][branch.path.removeprefix("stack.")]
            with open_dict(kind):
                kind["position"] = entry_config("position", "none", heads=heads)
    config["position"] = entry_config("position", name, heads=heads)
    return {"position": name}


def longest_training_sequence(data: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that data are trained on, in tokens; None if it is unknown."""
    if data["_target_"] == DIAGNOSTIC_DATA:
        return instantiate(data["source"]).tokens_per_sequence
    return data.get("context_length") or data.get("max_tokens")


def resolve_output_dir(config: DictConfig) -> None:
    """Give an evaluation that writes files a folder in the run of its checkpoint."""
    if "output" not in config or not config.ckpt_path:
        return
    if config.output == "":
        raise UserError("output must not be empty; name a folder or a file, or leave it out.")
    if config.output is not None:
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
