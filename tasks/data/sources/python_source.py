"""The modules of Python's standard library, as programs to model."""

import sys
import sysconfig
import tokenize
from pathlib import Path

from attention_zoo.errors import BadInput
from attention_zoo.tasks.data.sources.python_text import PythonText

# Systems such as Debian put these into packages of their own, which may be missing.
OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "venv"}
NO_PROGRAMS = {"encodings", "pydoc_data"}  # tables of characters, and the text of python_docs
TEST_FOLDERS = {"idle_test", "test", "tests"}
LONG_PARAGRAPH = 200  # characters; shorter ones are alike by chance


class PythonSource(PythonText):
    """The `.py` files of the standard library, each of them one document.

    A split holds whole modules and packages of the top level. Those that share a long paragraph,
    such as `bz2` and `lzma`, come into the same split. Tests of the library, what some systems
    install separately, and tables of characters are left out.
    """

    name = "python_source"

    def groups(self) -> dict[str, list[str]]:
        modules = read_modules(Path(sysconfig.get_path("stdlib")))
        groups: dict[str, list[str]] = {}
        for module, leader in find_leaders(modules).items():
            groups.setdefault(leader, []).extend(modules[module])
        self.notes = [
            f"{sum(map(len, modules.values()))} files of {len(modules)} modules and packages; "
            f"{len(modules) - len(groups)} follow another one that shares a paragraph with them"
        ]
        return groups


def read_modules(folder: Path) -> dict[str, list[str]]:
    """Return the texts of the files in each module or package of the top level.

    Raise BadInput if there are none.
    """
    names = sys.stdlib_module_names - OPTIONAL - NO_PROGRAMS
    modules: dict[str, list[str]] = {}
    files = {path.relative_to(folder).with_suffix("").parts: path for path in folder.rglob("*.py")}
    for parts in sorted(files):
        if parts[0] in names and not TEST_FOLDERS & {*parts}:
            with tokenize.open(files[parts]) as file:
                text = file.read()
            if text.strip():
                modules.setdefault(parts[0], []).append(text)
    if not modules:
        raise BadInput(
            f"this Python comes without the source of its standard library (none in {folder}); "
            "install the full library, or take your own text: data=text_files."
        )
    return modules


def find_leaders(modules: dict[str, list[str]]) -> dict[str, str]:
    """Return for each module the first of those that it shares long paragraphs with.

    Sharing is transitive: a module without such a paragraph is its own leader.
    """
    first_with: dict[str, str] = {}
    related = {module: [module] for module in modules}
    for module, texts in modules.items():
        for paragraph in {part for text in texts for part in long_paragraphs(text)}:
            other = first_with.setdefault(paragraph, module)
            if related[other] is not related[module]:
                merged = [*related[other], *related[module]]
                related |= dict.fromkeys(merged, merged)
    return {module: min(names) for module, names in related.items()}


def long_paragraphs(text: str) -> list[str]:
    """Return the long paragraphs of a text, with single spaces for all white space."""
    joined = (" ".join(part.split()) for part in text.split("\n\n"))
    return [paragraph for paragraph in joined if len(paragraph) > LONG_PARAGRAPH]
