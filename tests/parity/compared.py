"""Ours beside theirs: the cases of the parity table.

A case is a function that computes the same with an entry of the zoo and with its reference, from
copied weights, and returns what came of both.
"""

import ast
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_zoo import create_position
from attention_zoo.attention.base import Attention

Outcome = list[Tensor]  # the output, then its gradients


class Case(NamedTuple):
    entry: str
    reference: str
    compute: Callable[[], tuple[Outcome, Outcome]]

    def __str__(self) -> str:
        return f"{self.entry}-{self.compute.__name__}"


class Errors(NamedTuple):
    """The largest, relative to the largest number of theirs, and the type that both computed in."""

    forward: float
    gradient: float
    dtype: str


CASES: list[Case] = []


def discover() -> list[Case]:
    """The cases of all modules here that are called `references_…`."""
    for file in sorted(Path(__file__).parent.glob("references_*.py")):
        importlib.import_module(f"tests.parity.{file.stem}")
    return CASES


def parity(entry: str, reference: str) -> Callable[..., Callable[[], tuple[Outcome, Outcome]]]:
    """Enters a case of the table."""

    def enter(compute: Callable[[], tuple[Outcome, Outcome]]) -> Callable[..., object]:
        CASES.append(Case(entry, reference, compute))
        return compute

    return enter


def encoded(attention: Attention, name: str, **options: Any) -> Attention:
    """The attention, with an encoding of its own that has these options."""
    attention.attach_position(create_position(name, **attention.position_sizes, **options))
    return attention


def outcome(output: Tensor, leaves: Sequence[Tensor]) -> Outcome:
    """The output, and the gradients of a weighted sum of it by the leaves."""
    weights = torch.arange(1.0, output.numel() + 1, dtype=torch.float64).sin().view_as(output)
    gradients = torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)
    return [output.detach(), *gradients]


def errors(case: Case) -> Errors:
    torch.manual_seed(0)
    ours, theirs = case.compute()
    assert len(ours) == len(theirs) > 1, "an output and at least one gradient"
    found = []
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and b.abs().max() > 0
        found.append(((a - b).abs().max() / b.abs().max()).item())
    return Errors(found[0], max(found[1:]), str(theirs[0].dtype).removeprefix("torch."))


def fla(operation: str) -> ModuleType:
    """The plain form of an operation of flash-linear-attention.

    Read from its file: the package itself imports Triton, which needs a GPU.
    """
    package = importlib.util.find_spec("fla")
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "ops" / operation / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_{operation}_naive", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fla_class(path: str, name: str) -> Any:
    """A module of flash-linear-attention that needs PyTorch alone, read from its file likewise."""
    return fla_names(path, ast.ClassDef, {name})[name]


def fla_functions(path: str) -> SimpleNamespace:
    """The functions of a file of flash-linear-attention whose imports need a GPU."""
    return SimpleNamespace(**fla_names(path, ast.FunctionDef))


def fla_names(
    path: str, kind: type[ast.ClassDef] | type[ast.FunctionDef], names: set[str] | None = None
) -> dict[str, Any]:
    """The classes or functions of a file, without what it imports; all, or those of some names."""
    package = importlib.util.find_spec("fla")
    assert package is not None and package.submodule_search_locations
    tree = ast.parse((Path(package.submodule_search_locations[0]) / path).read_text())
    tree.body = [
        part
        for part in tree.body
        if isinstance(part, kind) and (names is None or part.name in names)
    ]
    found: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    exec(compile(tree, path, "exec"), found)
    return found
