"""Which data fit which task, and which tokenizer fits which data: by what their yaml files build.

Light on purpose: a command line is composed with it, before torch is imported.
"""

from importlib.resources import files
from pathlib import Path

TEXT = "attention_zoo.tasks.data.language_data.LanguageData"
PAIRS = "attention_zoo.tasks.data.translation_data.TranslationData"
DIAGNOSTICS = "attention_zoo.tasks.data.diagnostic_data.DiagnosticData"
DATA_MODULES = {"translation": (PAIRS,), "language_modeling": (TEXT, DIAGNOSTICS)}
SYMBOLS = "attention_zoo.tasks.data.tokenizers.SymbolTokenizer.train"


def target_of(group: str, choice: str) -> str | None:
    """What a choice of a group builds; None where there is no such choice."""
    file = files("attention_zoo.conf") / group / f"{choice}.yaml"
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8").splitlines()
    found = (line.removeprefix("_target_: ") for line in lines if line.startswith("_target_: "))
    return next(found, None)


def choices(group: str) -> list[str]:
    """All choices of a group."""
    folder = files("attention_zoo.conf") / group
    return sorted(Path(file.name).stem for file in folder.iterdir())


def task_of(data: str) -> str | None:
    """The one task that a choice of data fits; None where that is not known."""
    target = target_of("data", data)
    return next((task for task in DATA_MODULES if target in DATA_MODULES[task]), None)
