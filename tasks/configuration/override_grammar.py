"""Refuse overrides and flags that Hydra cannot read, with the rule that they break."""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.overrides import OVERRIDE, VALUE_FLAGS
from attention_zoo.tasks.sweeps.jobs import JOB_FOLDER
from attention_zoo.zoo import unknown_name_message

# Words with dots between them, or a group of files and the node that gets the chosen one.
NAME = re.compile(r"(\+{0,2}|~)[\w$-]+([./][\w$-]+)*(@[\w$-]+([./][\w$-]+)*)?", re.ASCII)
FLAG_VALUES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
SHORT_FLAGS = {"-c": "--cfg", "-i": "--info", "-p": "--package"}
SHORT_FLAGS |= {"-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir"}


def check_grammar(arguments: Sequence[str]) -> None:
    """Raise UserError for a flag or an override that Hydra cannot read."""
    flags = read_flags(arguments)
    for flag, value in flags.items():
        if value not in FLAG_VALUES.get(flag, (value,)):
            raise UserError(unknown_name_message(f"{flag} of", value, list(FLAG_VALUES[flag])))
        if flag in ("--package", "--resolve") and "--cfg" not in flags:
            raise UserError(f"{flag} is about what is shown; give --cfg job too.")
    for override in arguments:
        if OVERRIDE.match(override) and not override.startswith("-"):
            check_override(override)


def refuse_repeated_options(command: str, arguments: Sequence[str]) -> None:
    """Raise UserError for an option or a group that has two values, of which Hydra takes the last.

    What the program itself adds for a job or a rank may follow another value.
    """
    is_rank = os.environ.get("LOCAL_RANK", "0") != "0"
    if JOB_FOLDER in os.environ or "hydra.mode=RUN" in arguments or is_rank:
        return
    given: dict[str, list[str]] = {}
    for override in arguments:
        if OVERRIDE.match(override) and not override.startswith("-"):
            text = override.lstrip("+")
            texts = given.setdefault(text.lstrip("~").partition("=")[0], [])
            texts += [text] if text not in texts else []
    for name, texts in given.items():
        if len(texts) > 1:
            sweep = {"train": f", or sweep over values with -m {name}=A,B"}
            sweep["compare"] = f", or compare values with {name}=A,B"
            raise UserError(
                f"{name} is given several times, {' and '.join(texts)}: give it "
                f"once{sweep.get(command, '')}."
            )


def read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Return the flags among the arguments by their long names, with their values.

    Raise UserError for a flag that has two values.
    """
    flags: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if argument.startswith("-"):
            name = SHORT_FLAGS.get(flag, flag)
            if flag in VALUE_FLAGS and not equals:
                value = next(remaining, "")
            if flags.setdefault(name, value) != value:
                raise UserError(f"{name} takes one value, got {flags[name]} and {value}.")
    return flags


def check_override(override: str) -> None:
    """Raise UserError for an override that Hydra's parser does not take."""
    name, _, value = override.partition("=")
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name} is no name of an option: give words with dots between them, such as "
            "model.dim=64, or a group and its node, such as attention@cross_attention=linear."
        )
    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = " ".join(str(error).split())
        if function := re.search(r"Unknown function '(\w+)' Available: ([\w,]+)", reason):
            message = unknown_name_message("function", function[1], function[2].split(","))
            raise UserError(f"{name}={value}: {message}") from None
        if cause := re.search(r"while evaluating '.*?': (.*?)(?: See https|$)", reason):
            raise UserError(f"{name}={value} has no value: {cause[1]}.") from None
        raise UserError(
            f"{name}={value} cannot be read: close all brackets and quotes, and quote a value with "
            f"special characters, such as {name}='\"a#b\"'."
        ) from None
