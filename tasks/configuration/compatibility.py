"""Find what the choices of a group build, to tell which data, task and tokenizer fit each other.

Nothing here imports torch: a command line is composed with it first.
"""

import re
from importlib.resources import files
from pathlib import Path

from attention_zoo.tasks.task_spec import TASKS

SYMBOL_TOKENIZER = "attention_zoo.tasks.data.tokenizers.SymbolTokenizer.train"


def list_choices(group: str) -> list[str]:
    """Return the names of all choices of a group."""
    folder = files("attention_zoo.conf") / group
    return sorted(Path(file.name).stem for file in folder.iterdir())


def choice_target(group: str, choice: str) -> str | None:
    """Return the `_target_` of a choice; None if there is no such choice."""
    file = files("attention_zoo.conf") / group / f"{choice}.yaml"
    if not file.is_file():
        return None
    target = re.search(r"^_target_: (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return target and target[1]


def data_task(choice: str) -> str | None:
    """Return the one task that can be trained on a choice of data; None if that is unknown."""
    target = choice_target("data", choice)
    return next((name for name, task in TASKS.items() if target in task.data_modules), None)
