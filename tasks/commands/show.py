"""`attention-zoo show`: print the card of an entry of the zoo, or the layers of a model."""

import inspect
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from attention_zoo import card
from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.commands.help import COMMANDS, HELP_FLAGS
from attention_zoo.tasks.configuration.conf_files import list_choices
from attention_zoo.tasks.run_folder import refuse_unwritable
from attention_zoo.tasks.views.tables import Table, print_table
from attention_zoo.zoo import ATTENTION, POSITION, format_search_space, unknown_name_message

TOKENS, BYTES = 1024, 4  # the length whose decode state is counted, in float32


def run(arguments: list[str]) -> None:
    """Print the card, the options and the documentation of an entry; or the layers of a model."""
    names = [x for x in arguments if "=" not in x]
    if len(names) == len(arguments) or HELP_FLAGS & {*names}:
        show_entry(arguments)
    elif names:
        raise UserError(f"show takes only {COMMANDS['show'].usage}, got {names[0]!r}.")
    else:
        show_stack(arguments)


def show_entry(arguments: list[str]) -> None:
    """Print the card, the options and the documentation of an entry."""
    _, operands = parse_arguments("show", arguments, {}, operand="NAME")
    if len(operands) > 1:
        raise UserError(f"show takes one NAME, got {' '.join(operands)}.")
    (name,) = operands
    names = sorted([*ATTENTION, *POSITION])
    if name in list_choices("stack"):
        raise UserError(f"{name} is a stack: attention-zoo show stack={name} prints its layers.")
    if name not in names:
        raise UserError(unknown_name_message("attention or position", name, names))

    # Imported here, as entries need torch.
    from attention_zoo.factory import options_of

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


def format_field(value: bool | str | tuple[str, ...] | dict[str, tuple[float, ...]]) -> str:
    """Return the value of a card's field as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return format_search_space(value) or "none"
    return (", ".join(value) if isinstance(value, tuple) else value) or "none"


def show_stack(arguments: list[str]) -> None:
    """Print the layers of the model that options of `train` compose, and draw it if asked to."""
    import torch

    from attention_zoo.tasks.configuration.build import build_model, parameter_counts
    from attention_zoo.tasks.configuration.overrides import refuse_unused
    from attention_zoo.tasks.configuration.stacks import kv_sources_by_role, layers_by_role

    output = [x.partition("=")[2] for x in arguments if x.startswith("output=")]
    if len(output) > 1:
        raise UserError(f"output takes one value, output=…; got {' '.join(output)}.")
    if output and not output[0].endswith((".png", ".svg", ".pdf")):
        raise UserError(f"output must be a picture, such as stack.png, got {output[0]!r}.")
    options = [x for x in arguments if not x.startswith("output=")]
    refuse_unused("show", options)
    config = compose_training(options)
    with torch.device("meta"):
        size = config["tokenizer"].get("vocabulary_size") or 1
        model = build_model(config, vocabulary_size=size, pad_id=0)
    console = Console()
    for role, layers in layers_by_role(config).items():
        sources = kv_sources_by_role(config).get(role, [None] * len(layers))
        rows = [*layer_rows(layers, sources, config["model"]["heads"])]
        columns = ["layer", "kind", "attention", "position"]
        print_table(console, Table(role.replace("_", "-"), columns, rows, "llll"))
    print(f"{parameter_counts(model)['parameters/attention']:,} parameters of attention")
    print(describe_decode_state(model))
    if output:
        from attention_zoo.tasks.views.figures.diagram import draw_architecture

        with refuse_unwritable(Path(output[0]), "FILE"):
            draw_architecture(model).savefig(output[0])
        print(output[0])


def compose_training(arguments: list[str]) -> dict[str, Any]:
    """Return the config that `train` would compose of its options, resolved and checked."""
    from hydra import compose, initialize_config_module

    from attention_zoo.tasks.configuration.completion import complete_config
    from attention_zoo.tasks.configuration.composition import parse_command
    from attention_zoo.tasks.configuration.composition_errors import explain_error
    from attention_zoo.tasks.configuration.override_grammar import print_repeated_options
    from attention_zoo.tasks.configuration.validation import validate_attention

    invocation = parse_command("train", arguments)
    print_repeated_options(arguments)
    try:
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            overrides = [*invocation.overrides, "paths.run=run"]
            composed = compose(invocation.config_name, overrides=overrides)
        config, _ = complete_config(composed, invocation)
    except Exception as error:
        explained = explain_error(error, invocation)
        if explained is error:
            raise
        raise explained from None
    validate_attention(config)
    return config


def layer_rows(layers: list[Any], sources: list[int | None], heads: int) -> Iterator[list[str]]:
    """Yield a row for each run of neighbouring layers that are alike.

    `sources` are the layers whose keys and values others read.
    """
    described = [
        [
            # An attention that all layers have is of no kind.
            "+".join(x.path.removeprefix("stack.") if "." in x.path else "—" for x in layer),
            " + ".join(describe_node("attention", branch.attention, heads) for branch in layer),
            " + ".join(describe_node("position", branch.position, heads) for branch in layer),
        ]
        for layer in layers
    ]
    for row, source in zip(described, sources, strict=True):
        if source is not None:
            row[0] = row[0].upper()
            row[1] += f", keys and values of layer {source}"
    for row, run in groupby(enumerate(described), key=itemgetter(1)):
        numbers = [number for number, _ in run]
        last = f"–{numbers[-1]}" if len(numbers) > 1 else ""
        yield [f"{numbers[0]}{last}", *row]


def describe_node(group: str, node: Any, heads: int) -> str:
    """Return the name of an entry with the options that differ from those of its file."""
    from attention_zoo.tasks.configuration.conf_files import entry_config

    if node is None:
        return "—"
    defaults = entry_config(group, node["name"], heads=heads)
    changed = [f"{key}={x}" for key, x in node.items() if x != defaults.get(key)]
    return " ".join([node["name"], *changed])


def describe_decode_state(model: Any) -> str:
    """Return what decoding keeps of a sequence, over all layers, in words."""
    from attention_zoo.models.blocks import AttentionSublayer

    parts = [x for x in model.modules() if isinstance(x, AttentionSublayer) and x.role != "global"]
    without = [x.card.name for part in parts for x in part.branches if not x.card.cache]
    if without:
        return f"no cached decoding, as {without[0]} has none"
    state, longer = (BYTES * sum(x.decode_state(n) for x in parts) for n in (TOKENS, 2 * TOKENS))
    return (
        f"decode state of {TOKENS:,} tokens: {state / 1024:,.0f} KiB in float32, "
        f"of {2 * TOKENS:,} tokens: {longer / 1024:,.0f} KiB"
    )
