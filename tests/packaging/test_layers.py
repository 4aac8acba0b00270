"""Imports go one way, and what must answer at once imports nothing heavy.

conf → tasks → decoding → models → attention, position → backends, masks, caches.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

import attention_zoo
from tests.conformance.cases import mark_exhaustive

ROOT = Path(attention_zoo.__file__).parent
# From the bottom up: a module imports from its own layer and from those before it.
LAYERS = (
    {"errors", "precision", "tensor_checks", "checkpointing", "custom_gradients", "stored_cards"},
    {"zoo"},
    {"masks", "caches", "lookup"},
    {"backends"},
    {"position"},
    {"attention"},
    {"factory", "models", "capture"},
    {"decoding"},
    {"tasks"},
)
FRAMEWORKS = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "torchmetrics"}
# By their paths in the package. `glob` goes through the links to tasks and conf.
MODULES = sorted(
    Path(path).relative_to(ROOT).with_suffix("").parts
    for path in glob(f"{ROOT}/**/*.py", recursive=True)
)
LIBRARY = [parts for parts in MODULES if parts[0] not in ("tasks", "conf", "__main__")]


def imports(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The dotted names that a module imports anywhere in it, each as a path."""
    package = ("attention_zoo", *parts[:-1])
    for node in ast.walk(ast.parse(ROOT.joinpath(*parts).with_suffix(".py").read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            named = tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, *named, alias.name) for alias in node.names)


def layer(part: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if part in names)


def test_the_modules_are_found() -> None:
    assert ("tasks", "commands", "cli") in MODULES
    assert ("conf", "__init__") in MODULES
    assert ("attention_zoo", "zoo", "unknown_name_message") in set(
        imports(("backends", "__init__"))
    )
    assert ("attention_zoo", "tasks", "data", "sources", "base", "Source") in set(
        imports(("tasks", "data", "sources", "hub"))
    ), "relative imports are resolved"


@pytest.mark.parametrize("parts", LIBRARY, ids=".".join)
def test_the_library_knows_no_framework(parts: tuple[str, ...]) -> None:
    assert not {name[0] for name in imports(parts)} & FRAMEWORKS


@pytest.mark.parametrize(
    "parts",
    [parts for parts in MODULES if parts[0] not in ("__init__", "__main__", "conf")],
    ids=".".join,
)
def test_imports_point_down(parts: tuple[str, ...]) -> None:
    for name in imports(parts):
        assert name[0] not in ("tasks", "conf"), "a second copy of our modules"
        if name[0] == "attention_zoo":
            # A name that the package itself gives may come from all over the library.
            bottom = layer(name[1]) if name[1] in set().union(*LAYERS) else layer("decoding")
            assert bottom <= layer(parts[0]), f"{'.'.join(parts)} imports {'.'.join(name)}"


@pytest.mark.parametrize(
    "parts", [p for p in MODULES if p[0] == "backends" and p[1] != "__init__"], ids=".".join
)
def test_backends_do_not_import_one_another(parts: tuple[str, ...]) -> None:
    assert not [name for name in imports(parts) if name[:2] == ("attention_zoo", "backends")]


@pytest.mark.parametrize(
    ("arguments", "absent"),
    mark_exhaustive(
        (case, "a command")
        for case in (
            ("--help", "torch hydra lightning wandb torchmetrics rich"),
            ("train --help", "torch lightning wandb torchmetrics matplotlib"),
            ("train --cfg job", "torch lightning wandb torchmetrics matplotlib"),
            ("train --cfg job trainer.max_steps=5", "torch lightning wandb torchmetrics"),
            ("list", "torch lightning hydra wandb torchmetrics matplotlib"),
            ("list pairs=rotary", "torch lightning hydra wandb torchmetrics matplotlib"),
            ("figures --help", "torch lightning hydra wandb torchmetrics matplotlib"),
            ("show rotary", "lightning hydra wandb torchmetrics matplotlib"),
        )
    ),
)
def test_light_verbs_import_nothing_heavy(tmp_path: Path, arguments: str, absent: str) -> None:
    program = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules))))\n"
        "from attention_zoo.tasks.commands.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "attention_zoo.tasks.commands.cli" in imported
    assert not imported & set(absent.split())
