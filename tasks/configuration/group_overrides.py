"""Check the overrides that choose groups, and complete those of options that no file lists."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.conf_files import COLLECTIONS, REQUIRED, list_choices, show
from attention_zoo.tasks.configuration.override_grammar import option_name
from attention_zoo.tasks.configuration.overrides import search_path

# Groups of which several files can be chosen: each adds objects or settings of its own.
LISTS = (*COLLECTIONS, "experiment", "debug")


def check_group_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides, where none of a group of callbacks or loggers chooses `none`.

    Raise UserError for a group that cannot be left out, and for several choices of a group of one.
    """
    return [
        check_group_override(parsed) if (parsed := parse_group(x)) is not None else x
        for x in overrides
    ]


def refuse_replaced_options(overrides: Sequence[str]) -> None:
    """Raise UserError for an option with a value and options below it, which replace each other.

    A group has a choice and options of that.
    """
    by_name = {option_name(x): x for x in overrides}
    for name, override in by_name.items():
        if not name or "=" not in override or override.partition("=")[2].startswith("{"):
            continue
        if parse_group(override) is not None:
            continue
        below = next((x for other, x in by_name.items() if other.startswith(f"{name}.")), None)
        if below is not None:
            raise UserError(f"{override} and {below} replace each other; give one of them.")


def check_group_override(override: Override) -> str:
    """Return the override of a group, or raise UserError."""
    group, value = override.key_or_group, override.value()
    assert override.input_line is not None
    if override.is_sweep_override():
        return override.input_line
    choices = ", ".join(list_choices(group))
    if isinstance(value, list) and group not in LISTS:
        roles = " Choose one for a role with attention@cross_attention=NAME, and likewise "
        roles += (
            "encoder_attention and decoder_attention; or one for some layers with stack=hybrid "
        )
        roles += "attention@stack.a=NAME."
        raise UserError(
            f"{group} takes one choice, got {show(value)}."
            f"{roles if group == 'attention' else ''} Choices: {choices}."
        )
    if value == "" or not (value is None or isinstance(value, str | list)):
        raise UserError(f"{group} takes one choice, got {show(value)}. Choices: {choices}.")
    if isinstance(value, list) and not all(isinstance(x, str) for x in value):
        raise UserError(f"{group} takes names, got {show(value)}. Choices: {choices}.")
    if value is None:
        if override.package is None and group in COLLECTIONS:
            return f"{group}=none"
        if override.package is None and group in (*REQUIRED, "paths"):
            raise UserError(f"{group} cannot be left out. Choices: {choices}.")
        return f"~{override.get_key_element().lstrip('~+')}"
    return override.input_line


def quote_equals_signs(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with quotes around values that hold a `=`, such as names of files."""
    return [
        _quoted(x) if x.count("=") > 1 and "'" not in x and '"' not in x else x for x in overrides
    ]


def _quoted(override: str) -> str:
    name, _, value = override.partition("=")
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return override if "'" in value else f"{name}='{value}'"
    return override


def parse_group(override: str) -> Override | None:
    """Return a parsed override if it chooses a group of `conf`, or leaves one out."""
    name = override.lstrip("+~").partition("=")[0].partition("@")[0]
    if not name or "." in name or name.startswith(("hydra", "-")):
        return None
    if not (files("attention_zoo.conf") / name).is_dir():
        return None
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None  # The composition says what is wrong.


def compose_groups(config_name: str, overrides: Sequence[str], without: str = "") -> Any:
    """Compose what the overrides of groups choose alone; another one may be wrong as well."""
    groups = [parsed for x in overrides if (parsed := parse_group(x)) is not None]
    lines = [
        str(x.input_line)
        for x in groups
        if not x.is_sweep_override() and x.get_key_element() != without
    ]
    lines += [x for x in overrides if x.partition("=")[0].endswith("._target_")]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        return compose(config_name, overrides=[*search_path(overrides), *lines])


def complete_overrides(config_name: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with the `++` that Hydra asks for where a file does not list an option.

    A node with a `_target_` has all options of what that builds, such as those of
    `lightning.Trainer`, whether or not its file mentions them.
    """
    plain = [x for x in overrides if "." in x.partition("=")[0] and x[0] not in "+~-"]
    if not any(not x.startswith("hydra.") for x in plain):
        return [*overrides]
    try:
        config = compose_groups(config_name, overrides)
    except HydraException:
        return [*overrides]  # The composition of the whole says what is wrong.
    return [f"++{x}" if x in plain and _is_unlisted_option(x, config) else x for x in overrides]


def _is_unlisted_option(override: str, config: Any) -> bool:
    path, _, key = override.partition("=")[0].rpartition(".")
    node: Any = OmegaConf.select(config, path) if path.split(".")[0] in config else None
    if not OmegaConf.is_dict(node) or key in node or "_target_" not in node:
        return False

    # Imported here, as signatures need torch.
    from attention_zoo.tasks.configuration.option_checks import node_parameters, provided_options

    parameters, takes_others = node_parameters(node, path)
    return (key in parameters or takes_others) and key not in provided_options(path)
