"""Every public method that overrides none has a docstring; ruff asks for the other docstrings."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import attention_zoo

ROOT = Path(attention_zoo.__file__).parents[1]
MODULES = [
    ".".join(("attention_zoo", *path.relative_to(ROOT / folder).with_suffix("").parts))
    if folder == "attention_zoo"
    else ".".join(("attention_zoo.tasks", *path.relative_to(ROOT / folder).with_suffix("").parts))
    for folder in ("attention_zoo", "tasks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"tasks", "conf"} & {*path.relative_to(ROOT / folder).parts}
    and path.stem not in ("__init__", "__main__")
]


def undocumented(module: str) -> Iterator[str]:
    """Yield the methods of a module's classes that have no docstring and override nothing."""
    imported = importlib.import_module(module)
    for _, kind in inspect.getmembers(imported, inspect.isclass):
        if kind.__module__ != module:
            continue
        for name, part in vars(kind).items():
            part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
            if name.startswith("_") or not isinstance(part, FunctionType | property):
                continue
            if not part.__doc__ and not any(hasattr(base, name) for base in kind.__mro__[1:]):
                yield f"{kind.__name__}.{name}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", MODULES)
def test_a_public_method_has_a_docstring(module: str) -> None:
    assert not list(undocumented(module))
