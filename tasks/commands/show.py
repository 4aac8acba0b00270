"""`attention-zoo show NAME`: the card of an entry, and its options."""

import argparse
import inspect
from dataclasses import asdict

from attention_zoo import card
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, POSITION, unknown_name_message


def run(arguments: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from attention_zoo.factory import options_of

    parser = argparse.ArgumentParser(prog="attention-zoo show", description=__doc__)
    parser.add_argument("name", help="of an attention mechanism or a positional encoding")
    name = parser.parse_args(arguments).name
    names = sorted([*ATTENTION, *POSITION])
    if name not in names:
        raise UserError(unknown_name_message("entry", name, names))
    shown = card(name)
    entry = POSITION[name] if name in list(POSITION) else ATTENTION[name]
    table = Table(show_header=False, box=None)
    for key, value in asdict(shown).items():
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
