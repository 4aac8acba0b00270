"""`attention-zoo show NAME`: print the card of an entry, and its options."""

import inspect
from dataclasses import asdict

from attention_zoo import card
from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.zoo import ATTENTION, POSITION, unknown_name_message


def run(arguments: list[str]) -> None:
    """Print the card of the entry that is named."""
    from rich.console import Console
    from rich.table import Table

    from attention_zoo.factory import options_of

    _, operands = parse_arguments("show", arguments, {}, operand="NAME")
    if len(operands) > 1:
        raise UserError(f"show takes one NAME, got {' '.join(operands)}.")
    (name,) = operands
    names = sorted([*ATTENTION, *POSITION])
    if name not in names:
        raise UserError(unknown_name_message("entry", name, names))
    entry = POSITION[name] if name in list(POSITION) else ATTENTION[name]
    table = Table(show_header=False, box=None)
    for key, value in asdict(card(name)).items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        text = ", ".join(value) if isinstance(value, tuple) else value
        table.add_row(key.replace("_", " "), text or "none")
    options = ", ".join(
        key if option.default is option.empty else f"{key}={option.default}"
        for key, option in options_of(entry).items()
    )
    table.add_row("options", options)
    console = Console()
    console.print(table)
    console.print()
    console.print(inspect.getdoc(entry), markup=False, highlight=False, soft_wrap=True)
