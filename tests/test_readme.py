"""The README says what is true: its tables are the cards', its commands compose."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from attention_zoo.tasks.commands.list import run
from attention_zoo.tasks.configuration.composition import register_plugins, split

README = Path(__file__).parents[1] / "README.md"
COMMANDS = re.findall(r"^attention-zoo train .*$", README.read_text(), flags=re.MULTILINE)


def test_tables_are_those_of_the_cards(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text())
    run(["--output", str(copy)])
    assert "<!-- zoo: begin -->\nRoles: C causal" in copy.read_text()
    assert copy.read_text() == README.read_text(), "run: attention-zoo list --output README.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_training_commands_compose(command: str) -> None:
    overrides, lines = split(shlex.split(command, comments=True)[2:])
    assert not lines
    register_plugins("train")
    assert "--help" in overrides or any("=" in x for x in overrides)
    values = [x for x in overrides if "=" in x]
    if "-m" in overrides:
        values = [x.split(",")[0] for x in values]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        assert compose("train", overrides=values)
