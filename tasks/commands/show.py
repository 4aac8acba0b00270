"""`attention-zoo show NAME`: print the card and the options of an entry of the zoo."""

import inspect
from dataclasses import asdict

from rich.console import Console

from attention_zoo import card
from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.views.tables import Table, print_table
from attention_zoo.zoo import ATTENTION, POSITION, unknown_name_message


def run(arguments: list[str]) -> None:
    """Print the card, the options and the documentation of an entry."""
    from attention_zoo.factory import options_of

    _, operands = parse_arguments("show", arguments, {}, operand="NAME")
    if len(operands) > 1:
        raise UserError(f"show takes one NAME, got {' '.join(operands)}.")
    (name,) = operands
    names = sorted([*ATTENTION, *POSITION])
    if name not in names:
        raise UserError(unknown_name_message("entry", name, names))
    entry = POSITION[name] if name in list(POSITION) else ATTENTION[name]
    fields = asdict(card(name))
    rows = [(key.replace("_", " "), format_field(value)) for key, value in fields.items()]
    options = ", ".join(
        key if option.default is option.empty else f"{key}={option.default}"
        for key, option in options_of(entry).items()
    )
    console = Console()
    table = Table("", ["field", "value"], [*rows, ("options", options)], "ll")
    print_table(console, table, show_header=False)
    console.print(inspect.getdoc(entry) or "", markup=False, highlight=False, soft_wrap=True)


def format_field(value: bool | str | tuple[str, ...]) -> str:
    """Return the value of a card's field as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) if isinstance(value, tuple) else value) or "none"
