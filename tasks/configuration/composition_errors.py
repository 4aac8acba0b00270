"""Explain errors of composition on one line."""

import errno
import re
from importlib.resources import files
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.conf_files import list_choices
from attention_zoo.tasks.configuration.group_overrides import compose_groups
from attention_zoo.tasks.configuration.overrides import override_values
from attention_zoo.tasks.configuration.stacks import kinds_of
from attention_zoo.zoo import other_names, unknown_name_message

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Launchers that an extra of the package installs.
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
# Groups whose choices one may look for in another of them.
RELATED_GROUPS = ("attention", "position", "stack")


def explain_error(error: Exception, invocation: Invocation) -> Exception:
    """Return a `UserError` for what the user can correct, and any other error as it is."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and name in LAUNCHER_EXTRAS:
            return UserError(
                f"{group}={name} needs a package that is not installed; "
                f"pip install 'attention-zoo[{LAUNCHER_EXTRAS[name]}]'."
            )
        choices = list(error.options)
        if group.partition("/")[0] == "experiment":  # Hydra leaves out those in folders.
            group, _, name = error.missing_cfg_file.partition("/")
            choices = sorted({*choices, *list_choices(group)})
        return UserError(unknown_choice_message(group, name, choices))
    text = " ".join(str(error).split())
    if isinstance(error, HydraException) and (message := explain_hydra_message(text, invocation)):
        return UserError(message)
    absent = re.search(r"Could not delete from config\. '([^']+)' does not exist", str(error))
    if isinstance(error, ConfigCompositionException) and absent:
        # To Hydra, what is null does not exist.
        composed = compose_groups(invocation.config_name, invocation.overrides, without=absent[1])
        node, _, key = absent[1].rpartition(".")
        if key in ((OmegaConf.select(composed, node) if node else composed) or ()):
            return UserError(f"{absent[1]} is null already: remove ~{absent[1]}.")
        return UserError(unknown_option_message(absent[1], invocation))
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and unknown:
        # The override of a mapping may hold the unknown key.
        inner = str(getattr(error.__cause__, "full_key", ""))
        return UserError(unknown_option_message(max(unknown[1], inner, key=len), invocation))
    merged = re.search(r"Error merging override \+*([\w.@]+)=(.*)", str(error))
    if isinstance(error, ConfigCompositionException) and merged:
        name, value = merged.groups()
        composed = compose_groups(invocation.config_name, invocation.overrides, without=name)
        node = None if name.startswith("hydra.") else OmegaConf.select(composed, name)
        if not OmegaConf.is_config(node):
            return UserError(f"{name}={value}: {str(error.__cause__ or error).splitlines()[0]}.")
        kind = "a list" if OmegaConf.is_list(node) else "a mapping"
        return UserError(f"{name} must be {kind}, got {value}.")
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        example = documented_form(error.full_key, invocation)
        return UserError(f"{error.full_key} has no default; give it: {example}")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        where = f"{error.filename}: " if error.filename else ""
        return BadInput(
            f"{where}{error.strerror}. Make room, or choose other folders: hydra.run.dir=FOLDER "
            "for what the run writes, paths.cache=FOLDER for prepared data."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return BadInput(f"{error.filename}: {error.strerror}. Choose another file or folder.")
    if isinstance(error, YAMLError):
        return BadInput(f"a config file is not YAML: {' '.join(str(error).split())}")
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return UserError(f"{error.full_key}: {str(error).splitlines()[0].rstrip('.')}.")
    # submitit reports that SLURM has failed or, by a RuntimeError, that it is missing.
    of_submitit = type(error).__module__.startswith("submitit") or "Could not detect" in str(error)
    if isinstance(error, HydraException | OmegaConfBaseException) or of_submitit:
        return UserError(text)
    return error


def explain_hydra_message(text: str, invocation: Invocation) -> str | None:
    """Return the sentence for a message of Hydra that does not say what to write instead."""
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*)' 1\. To use it", text)
    several = several or re.search(r"Sweep parameters '([^=]+)=(.*)' requires --multirun", text)
    if several:
        name, values = several.groups()
        remedy = f"give one, or a list as {name}=[…]"
        if invocation.command == "train":
            remedy = f"sweep over them with -m, {remedy}"
        return f"{name} has several values, got {values}: {remedy}."
    if other := re.search(
        r"delete from config\. The value of '(\S+)' is (.*) and not (.*)\.", text
    ):
        name, value, wrong = other.groups()
        return (
            f"~{name}={wrong} removes {name} only where it is {wrong}, got {value}: write ~{name}."
        )
    if choice := re.search(
        r"Could not delete '([^=]+)=(.*)'\. No match in the defaults list", text
    ):
        group, name = choice.groups()
        return f"~{group}={name} takes back a choice that was not made; choose with {group}=NAME."
    if kept := re.search(r"Error merging override ~([^=]+)$", text):
        return f"{kept[1]} cannot be left out."
    if unloaded := re.search(r"Could not load '(\w+)/([^']+)'", text):
        return unknown_choice_message(unloaded[1], unloaded[2], list_choices(unloaded[1]))
    if group_name := re.search(r"but config group '(\S+)' does not exist", text):
        groups = [x.name for x in files("attention_zoo.conf").iterdir() if x.is_dir()]
        return unknown_name_message("group", group_name[1], sorted(set(groups) - {"__pycache__"}))
    return None


def unknown_node_message(name: str, config: Any) -> str:
    """Return the message for a group that is chosen for a node that takes none of it."""
    group, _, node = name.partition("@")
    kinds = kinds_of(config.get("stack") or {})
    nodes = [x for x in config if str(x).endswith("_attention")] if group == "attention" else []
    if group in ("attention", "position"):
        nodes += [f"stack.{x}{'.position' if group == 'position' else ''}" for x in kinds]
    choices = [group, *(f"{group}@{x}" for x in nodes)]
    remedy = " Choose stack=hybrid, or a layout, too." if node[:6] == "stack." and not kinds else ""
    return f"There is no node {node} to choose {group} for.{remedy} Choices: {', '.join(choices)}."


def unknown_choice_message(group: str, name: str, choices: list[str]) -> str:
    """Return the message for an unknown choice of a group; it may be one of a related group."""
    for other in RELATED_GROUPS:
        names = dict(other_names(other)) | {x: x for x in list_choices(other)}
        if group in RELATED_GROUPS and name in names and name not in dict(other_names(group)):
            return f"There is no {group} {name!r}, but there is {other}={names[name]}."
    return unknown_name_message(group, name, choices)


def documented_form(name: str, invocation: Invocation) -> str:
    """Return how the comments in the file of a chosen group write an option."""
    group = name.partition(".")[0]
    choice = override_values(invocation.overrides).get(group, "")
    file = files("attention_zoo.conf") / group / f"{choice}.yaml"
    written = file.is_file() and re.search(rf"{re.escape(name)}=\S+", file.read_text())
    return written[0] if written else f"{name}=VALUE"


def unknown_option_message(name: str, invocation: Invocation) -> str:
    """Return the sentence for an override of an unknown option, with the options there are."""
    # Imported here, as signatures need torch.
    from attention_zoo.tasks.configuration.option_checks import unknown_option

    node = name.rpartition(".")[0]
    if name == "output" and invocation.command in ("translate", "generate"):
        return f"{invocation.command} prints its lines: write them into a file with > FILE."
    composed = compose_groups(invocation.config_name, invocation.overrides, without=name)
    if "@" in name:
        return unknown_node_message(name, composed)
    if re.fullmatch(r"stack\.[a-z](\.position)?", name):
        group = "position" if name.endswith(".position") else "attention"
        return f"{name} is chosen as a group; give {group}@{name}=NAME."
    if node in composed and OmegaConf.select(composed, node) is None:
        choice = f"attention@{node}" if node.endswith("_attention") else node
        return f"{node} has no options until it is chosen: {choice}=NAME {name}=VALUE"
    if "paths" in composed:
        with open_dict(composed):
            composed.paths.run = "run"  # There is no folder of a run yet.
    return unknown_option(name, OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
