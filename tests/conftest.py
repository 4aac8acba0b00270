"""What all tests share: one thread, the same numbers every time, the program, real text.

`pytest -k NAME` also finds the tests that name an entry in their code, or in that of the functions
of their module that they call, such as its traps.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from time import time
from typing import Any

import pytest
import torch

import attention_zoo
from tests.browser import started

torch.set_num_threads(1)
ENTRIES = frozenset([*attention_zoo.list_attention(), *attention_zoo.list_position()])
# Seconds since the epoch, after which no slow or exhaustive test begins.
DEADLINE = float(os.environ.get("ATTENTION_ZOO_TEST_DEADLINE", "inf"))
AFTER_DEADLINE = "not run: the deadline of the tests is over"
DATA = Path(os.environ.get("ATTENTION_ZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))


@cache
def words_in(function: Callable[..., Any]) -> frozenset[str]:
    """Return the words of a function's code, with the quotes of those that are strings."""
    return frozenset(re.findall(r"\"\w+\"|\w+", inspect.getsource(function)))


@cache
def entries_named_in(function: Callable[..., Any]) -> frozenset[str]:
    """Return the entries whose names are strings in a function's code, or in what it calls."""
    functions = [function]
    for caller in functions:
        for word in words_in(caller):
            called = caller.__globals__.get(word)
            if (
                inspect.isfunction(called)
                and called.__module__ == function.__module__
                and called not in functions
            ):
                functions.append(called)
    return frozenset(name for name in ENTRIES if any(f'"{name}"' in words_in(f) for f in functions))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `-k` match the entries that a test names."""
    if isinstance(item, pytest.Function):
        item.extra_keyword_matches |= entries_named_in(item.function)


def is_marked(item: pytest.Item, *markers: str) -> bool:
    """Return whether a test has one of these markers."""
    return any(item.get_closest_marker(marker) for marker in markers)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put last what a deadline may leave out: slow tests, then exhaustive ones.

    Those begin at another place with every deadline, so that it is not always the same ones that
    are left out.
    """
    exhaustive = [item for item in items if is_marked(item, "exhaustive")]
    others = [item for item in items if not is_marked(item, "exhaustive")]
    start = int(DEADLINE) % len(exhaustive) if exhaustive and float("inf") > DEADLINE else 0
    others.sort(key=lambda item: is_marked(item, "slow"))
    items[:] = [*others, *exhaustive[start:], *exhaustive[:start]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out slow and exhaustive tests after the deadline."""
    if time() > DEADLINE and is_marked(item, "slow", "exhaustive"):
        pytest.skip(AFTER_DEADLINE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests the deadline left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = sum(AFTER_DEADLINE in str(report.longrepr) for report in skipped)
    if left_out:
        terminalreporter.write_sep("=", f"NOT RUN, for want of time: {left_out} tests", red=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_rank_left() -> Iterator[None]:
    """Hold that a test leaves no rank behind: a later training would wait for other processes."""
    yield
    left = {"LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE"} & os.environ.keys()
    assert not left, f"{', '.join(sorted(left))} left in the environment"


def train_in(folder: Path, patch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """Run `attention-zoo train` in this process, in a folder; return the run's folder."""
    from attention_zoo.tasks.commands.cli import main

    patch.chdir(folder)
    patch.setenv("ATTENTION_ZOO_CACHE", str(folder / "cache"))
    patch.setenv("WANDB_MODE", "offline")
    patch.delenv("HYDRA_FULL_ERROR", raising=False)
    patch.setattr(sys, "argv", ["attention-zoo", "train", *overrides])
    try:
        main()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return max(folder.glob("logs/*/runs/*"), key=lambda path: path.name)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """`attention-zoo train` in this process, in an empty folder; gives the run's folder."""
    return partial(train_in, tmp_path, monkeypatch)


@pytest.fixture
def real() -> Callable[[str], Path]:
    """A file or folder of real text; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"There is no {DATA / name}; set ATTENTION_ZOO_DATA to its parent.")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, for tests that are marked with `in_browser`."""
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
