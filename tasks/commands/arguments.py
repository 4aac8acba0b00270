"""The arguments of commands that Hydra does not compose: options `name=value`, and operands."""

import re
import sys
from collections.abc import Mapping, Sequence

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.help import COMMANDS, HELP_FLAGS, command_help
from attention_zoo.tasks.configuration.renamed_options import REPLACED_FLAGS, refuse_renamed_options
from attention_zoo.zoo import unknown_name_message


def parse_arguments(
    command: str, arguments: Sequence[str], options: Mapping[str, str], *, operand: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Return the options by name, and the operands; print the help if that is asked for.

    `options` says what each option does, by its form, such as `output=FILE`; `operand` is what the
    other arguments name, such as `FOLDER`, if the command takes any.
    """
    if HELP_FLAGS & {*arguments}:
        print(command_help(command, options))
        sys.exit()
    names = [option.partition("=")[0] for option in options]
    replaced = REPLACED_FLAGS.get(command, {})
    values: dict[str, str] = {}
    operands: list[str] = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        is_option = re.match(r"\w+=", argument)
        if name in replaced:
            raise UserError(f"{name} is written {replaced[name]} now.")
        if operand and not is_option and not name.startswith("-"):
            operands.append(argument)
        elif not names:
            raise UserError(f"{command} takes only {COMMANDS[command].usage}, got {argument!r}.")
        elif not is_option:
            raise UserError(f"{command} takes options of the form name=value, got {argument!r}.")
        elif name not in names:
            refuse_renamed_options([argument])
            raise UserError(unknown_name_message("option", name, names))
        elif not value or name in values:
            raise UserError(f"{name} takes one value, {name}=…; got {' '.join(arguments)}.")
        else:
            values[name] = value
    if "" in operands:
        raise UserError(f"{command} needs a name for each {operand}, got one that is empty.")
    if operand and not operands:
        raise UserError(f"{command} needs at least one {operand}.")
    return values, operands
