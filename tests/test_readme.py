"""The documents say what is true: tables are the cards', commands compose, examples run."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from attention_zoo.tasks.commands.list import run
from attention_zoo.tasks.comparison.suite import read_suite
from attention_zoo.tasks.configuration.composition import parse_command, register_plugins
from attention_zoo.tasks.configuration.group_overrides import complete_overrides
from attention_zoo.tasks.configuration.overrides import split_arguments
from tests.conformance.cases import mark_exhaustive

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ZOO = ROOT / "docs" / "zoo.md"
COMMANDS = sorted(
    {
        command
        for document in (README, *ROOT.glob("docs/*.md"))
        for command in re.findall(
            r"^attention-zoo (?:train|compare|benchmark) .*$",
            document.read_text().replace("\\\n", ""),
            re.MULTILINE,
        )
    }
)
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_tables_are_those_of_the_cards(tmp_path: Path) -> None:
    copy = tmp_path / "zoo.md"
    copy.write_text(ZOO.read_text())
    run([f"output={copy}"])
    assert "<!-- zoo: begin -->\n- Also called: " in copy.read_text()
    assert copy.read_text() == ZOO.read_text(), "run: attention-zoo list output=docs/zoo.md"


def options_named_in(command: str) -> frozenset[str]:
    """Return the flags of a command, and the group of its first option."""
    words = shlex.split(command, comments=True)[2:]
    flags = {word for word in words if word.startswith("-")}
    return frozenset({*flags, re.split(r"[=.@]", words[0])[0]})


def compose_first(command: str, arguments: list[str]) -> None:
    """Compose the first candidate of a comparison or a benchmark, or find the suite."""
    if suites := [x.partition("=")[2] for x in arguments if x.startswith("suite=")]:
        assert suites[0].endswith(".yaml") or read_suite(suites[0])
        return
    invocation = parse_command(command, arguments)
    values = [x if "[" in x else x.split(",")[0] for x in invocation.overrides if "=" in x]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        assert compose(invocation.config_name, overrides=values)


@pytest.mark.parametrize(
    "command", mark_exhaustive((command, options_named_in(command)) for command in COMMANDS)
)
def test_training_commands_compose(command: str) -> None:
    _, verb, *arguments = shlex.split(command, comments=True)
    if verb != "train":
        compose_first(verb, arguments)
        return
    overrides, lines = split_arguments("train", shlex.split(command, comments=True)[2:])
    assert not lines
    register_plugins("train")
    assert "--help" in overrides or any("=" in x for x in overrides)
    values = [x for x in overrides if "=" in x]
    if "-m" in overrides:
        values = [x.split(",")[0] for x in values]
    values = complete_overrides("train", values)
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        assert compose("train", overrides=values)


@pytest.mark.parametrize("example", EXAMPLES[:-1])
def test_python_examples_run(example: str) -> None:
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["output"].shape == (2, 10, 64)
