"""The commands, and the help of each: what it does, its options, and the groups to choose from."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from importlib.resources import files
from io import StringIO
from textwrap import indent, wrap
from typing import Any, NamedTuple

HELP_FLAGS = {"--help", "-h"}


class Command(NamedTuple):
    """What a command does, and its arguments; its module is in `attention_zoo.tasks.commands`."""

    summary: str
    usage: str


FROM_CHECKPOINT = "ckpt_path=FILE [name=value …]"
COMMANDS = {
    "train": Command("Train a model, and score it on the test split", "[name=value …]"),
    "compare": Command(
        "Tune several models alike, and tell which is best and how sure that is",
        "name=value,value … [budget=2h] [name=value …] [--dry-run]",
    ),
    "benchmark": Command(
        "Measure time, memory and decoding of models by the length of their sequences",
        "name=value,value … [lengths=[64,256,1024]] [name=value …]",
    ),
    "evaluate": Command(
        "Score a checkpoint on a split of its data, also at other lengths", FROM_CHECKPOINT
    ),
    "translate": Command("Translate lines with a checkpoint", f"{FROM_CHECKPOINT} [LINE …]"),
    "attend": Command(
        "Write a page that shows what attends to what, for lines", f"{FROM_CHECKPOINT} [LINE …]"
    ),
    "generate": Command("Continue prompts with a checkpoint", f"{FROM_CHECKPOINT} [LINE …]"),
    "list": Command("Print the mechanisms and encodings of the zoo as tables", "[name=value …]"),
    "show": Command(
        "Print the card of a mechanism or an encoding, or the layers of a model",
        "NAME | stack=NAME [name=value …] [output=stack.png]",
    ),
    "report": Command("Compare runs and sweeps", "FOLDER … [name=value …]"),
    "figures": Command("Draw the pictures that explain attention", "[name=value …]"),
}
# Hydra composes their configs, so they take its flags and overrides.
COMPOSED = ("train", "compare", "benchmark", "evaluate", "translate", "attend", "generate")


def program_help() -> str:
    """Return the help of the program."""
    commands = "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    return f"""attention-zoo COMMAND [name=value …]

{commands}

  attention-zoo COMMAND --help      what a command does, its options, and choices
  attention-zoo train attention=linear position=rotary model.dim=256 trainer.max_steps=500
  attention-zoo train --cfg job     the composed config
  attention-zoo train -m attention=multi_head,linear position=sinusoidal,rotary
  attention-zoo --version           the version"""


def command_help(command: str, options: Mapping[str, str]) -> str:
    """Return the help of a command; `options` says what each does, by its form: `output=FILE`."""
    summary, usage = COMMANDS[command]
    lines = [f"attention-zoo {command} {usage}", "", f"{summary}."]
    for option, description in options.items():
        text = [indent(line, " " * 6) for line in wrap(description, 94)]
        lines += ["", f"  {option}", *text]
    return "\n".join(lines)


def override_help(command: str) -> list[str]:
    """Return the override that makes Hydra print our help of a command in place of its own."""
    from hydra.core.config_store import ConfigStore

    text = f"""{command_help(command, dict(documented_options(command)))}

Groups: choose with group=choice
$APP_CONFIG_GROUPS
Config: change a value with name=value, such as model.dim=256
$CONFIG
--cfg job prints the config alone, and --hydra-help the flags of Hydra."""
    ConfigStore.instance().store(group="hydra/help", name="command", node={"template": text})
    return ["hydra/help=command"]


def print_composed_help(command: str, job: Callable[[], Any]) -> None:
    """Print the help that Hydra makes of `override_help`, without groups that are for training."""
    from attention_zoo.tasks.configuration.composition import TRAINING_GROUPS

    hidden = set() if command in ("train", "compare") else {"task", *TRAINING_GROUPS}
    if command == "evaluate":
        hidden.remove("logger")
    if command == "benchmark":
        hidden -= {"task", "experiment"}
        hidden |= {"data", "optimizer", "schedule", "decoding"}
    with redirect_stdout(StringIO()) as text, suppress(SystemExit):
        job()
    for line in text.getvalue().splitlines():
        if line.partition(": ")[0] not in hidden:
            print(line)


def documented_options(command: str) -> Iterator[tuple[str, str]]:
    """Yield the options in the yaml file of a command with their comments."""
    parent, comments, after_comment = "", [""], False
    for line in files("attention_zoo.conf").joinpath(f"{command}.yaml").read_text().splitlines():
        if line.startswith("#"):
            comments = [*(comments if after_comment else []), line.removeprefix("# ")]
        after_comment = line.startswith("#")
        option = re.fullmatch(r"(  )?(\w+):(?: (.+))?", line)
        if option is None:
            continue
        indentation, name, value = option.groups()
        parent = parent if indentation else name
        if value and parent not in ("defaults", "hydra"):
            prefix = f"{parent}." if indentation else ""
            yield f"{prefix}{name}={value}", " ".join(comments)
        if value and not indentation:
            comments = []
