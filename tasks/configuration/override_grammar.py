"""Read overrides and flags as Hydra does: say what it replaces, and refuse what it cannot read."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import TextIO

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


def describe_repeated_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield which value counts of an option or a group that is given several: Hydra takes the last.

    What the program itself adds for a job or a rank may follow another value, which is not said.
    """
    is_rank = os.environ.get("LOCAL_RANK", "0") != "0"
    if JOB_FOLDER in os.environ or "hydra.mode=RUN" in arguments or is_rank:
        return
    names = [option_name(x) for x in arguments]
    for name in dict.fromkeys(x for x in names if x):
        *others, last = (
            x.lstrip("+") for x, own in zip(arguments, names, strict=True) if own == name
        )
        others = [x for x in dict.fromkeys(others) if x != last]
        if others:
            yield (
                f"{name} is given several times, and the last counts: {last}, not "
                f"{' or '.join(others)}"
            )


def print_repeated_options(arguments: Sequence[str], stream: TextIO | None = None) -> None:
    """Print which value counts of options that are given several, to stdout if not elsewhere."""
    for sentence in describe_repeated_options(arguments):
        print(sentence, file=stream, flush=True)


def last_values(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without values that a later one of the same option replaces."""
    names = [option_name(x) for x in arguments]
    return [x for i, x in enumerate(arguments) if not names[i] or names[i] not in names[i + 1 :]]


def option_name(argument: str) -> str:
    """Return the option or group of an override; empty for a flag or a text."""
    if argument.startswith("-") or not OVERRIDE.match(argument):
        return ""
    return argument.lstrip("+~").partition("=")[0]


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
