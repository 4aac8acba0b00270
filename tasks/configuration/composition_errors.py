"""Explain errors of composition on one line."""

import re
from importlib.resources import files

from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.zoo import unknown_name_message

# Launchers that an extra of the package installs.
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}


def explain_error(error: Exception, invocation: Invocation) -> Exception:
    """Return a `UserError` for what the user can correct, and any other error as it is."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and name in LAUNCHER_EXTRAS:
            return UserError(
                f"{group}={name} needs a package that is not installed; "
                f"pip install 'attention-zoo[{LAUNCHER_EXTRAS[name]}]'."
            )
        return UserError(unknown_name_message(group, name, list(error.options)))
    unknown = re.search(r"Could not override '(?:([\w.]+)\.)?([\w@]+)'", str(error))
    if isinstance(error, ConfigCompositionException) and unknown:
        return UserError(unknown_option_message(unknown[1], unknown[2], invocation))
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return UserError(f"{error.full_key} has no default; give it: {error.full_key}=VALUE")
    # submitit reports that SLURM has failed or, by a RuntimeError, that it is missing.
    of_submitit = type(error).__module__.startswith("submitit") or "Could not detect" in str(error)
    if isinstance(error, HydraException | OmegaConfBaseException) or of_submitit:
        return UserError(" ".join(str(error).split()))
    return error


def unknown_option_message(node: str | None, option: str, invocation: Invocation) -> str:
    """Return the sentence for an override of an unknown option, with the options there are."""
    name = option if node is None else f"{node}.{option}"
    # Another override may be wrong as well, so only those that choose a group are composed.
    groups = [x for x in invocation.overrides if chooses_group(x)]
    choices = [x for x in groups if x.lstrip("+~").partition("=")[0] != name]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        composed = compose(invocation.config_name, overrides=choices)
    if node is None:
        return unknown_name_message("option", name, [str(key) for key in composed])
    chosen = OmegaConf.select(composed, node)
    if chosen is None and node in composed:
        choice = f"attention@{node}" if node.endswith("_attention") else node
        return f"{node} has no options until it is chosen: {choice}=NAME {name}=VALUE"
    keys = [key for key in chosen if not str(key).startswith("_")] if chosen is not None else []
    options = [f"{node}.{key}" for key in keys] or [str(key) for key in composed]
    return unknown_name_message("option", name, options)


def chooses_group(override: str) -> bool:
    """Return whether an override chooses one file of a group."""
    name, equals, value = override.lstrip("+~").partition("=")
    is_group = (files("attention_zoo.conf") / name.partition("@")[0]).is_dir()
    return is_group and equals == "=" and "," not in value
