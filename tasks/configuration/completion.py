"""Complete a composed config and refuse what is wrong with it, before anything is built."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from attention_zoo.tasks.configuration.build import (
    find_untrusted_target,
    refuse_untrusted_targets,
)
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.defaults import (
    resolve_defaults,
    resolve_intervals,
    resolve_output_dir,
)
from attention_zoo.tasks.configuration.option_checks import (
    check_groups,
    check_options,
    check_own_options,
    legal_names,
)
from attention_zoo.tasks.configuration.overrides import refuse_unused

TEXT_COMMANDS = ("translate", "generate", "attend")  # They work on lines that are given.


def complete_config(
    config: DictConfig, invocation: Invocation
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Choose what a composed config leaves open, and check it.

    Returns:
        The config in plain containers, and by group the choices that were made.

    Raises:
        UserError: groups or options that are missing, unknown or of the wrong type.
        Unsupported: the config is of a checkpoint, and would build what is no part of this program.
    """
    checkpoint = invocation.checkpoint
    training_config = checkpoint and checkpoint["attention_zoo"]["config"]
    unused: tuple[str, ...] = ()
    if checkpoint or invocation.command == "train":
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        check_groups(plain)
        overrides_data = any(x.lstrip("+~").startswith("data.") for x in invocation.overrides)
        if invocation.command in TEXT_COMMANDS and not overrides_data:
            # Lines of text need no data, so that those of others are not even imported.
            untrusted = find_untrusted_target(plain["data"], training_config or {})
            unused = () if untrusted is None else ("data",)
        built = {key: node for key, node in plain.items() if key not in unused}
        refuse_untrusted_targets(built, training_config or {})
    if checkpoint and invocation.command != "train":
        refuse_unused(invocation.command, invocation.overrides)
    check_own_options(config, invocation.command)
    choices = resolve_defaults(config, invocation.overrides, training_config)
    resolve_output_dir(config)
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    used = {key: node for key, node in plain.items() if key not in unused}
    check_options(used, legal_names(invocation.command))
    if "trainer" in plain:
        resolve_intervals(plain)
    return plain, choices
