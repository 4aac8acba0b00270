"""`attention-zoo compare suite=NAME`: the same comparison on every benchmark of a suite."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison.checking import check_comparison
from attention_zoo.tasks.configuration.override_grammar import (
    last_values,
    print_repeated_options,
    read_flags,
)
from attention_zoo.tasks.configuration.overrides import override_values
from attention_zoo.tasks.folder_lock import locked_folder
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.views.tables import Table, print_table
from attention_zoo.tasks.wording import pluralize
from attention_zoo.zoo import unknown_name_message

SUITES = files("attention_zoo.tasks") / "comparison/suites"
# Options that every benchmark decides, by its experiment if not by name.
DECIDED = ("experiment", "data", "task")
SWEEP_DIR = "hydra.sweep.dir"


def run_suite(suite: str, arguments: Sequence[str]) -> None:
    """Run a comparison on each benchmark of a suite, in a process and a folder of its own.

    One that fails does not stop the others; the same command with the same `hydra.sweep.dir` goes
    on. `budget` is that of each benchmark.

    Raises:
        UserError: there is no such suite, an option belongs to its benchmarks, or one has failed.
    """
    print_repeated_options(arguments)
    arguments = last_values(arguments)
    benchmarks = read_suite(suite)
    options = override_values([x for x in arguments if "=" in x])
    decided = {
        *DECIDED,
        "benchmark",
        *(name for x in benchmarks.values() for name in override_values(x)),
    }
    for name in sorted(decided & options.keys()):
        raise UserError(f"suite={suite} chooses {name} itself, got {name}={options[name]}.")
    others = [x for x in arguments if x.lstrip("+").partition("=")[0] not in ("suite", SWEEP_DIR)]
    default = f"logs/suites/{suite}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = Path(options.get(SWEEP_DIR, default).strip("'\""))
    check_benchmarks(list(benchmarks.values()), others)
    console = Console()
    with locked_folder(folder, SWEEP_DIR):
        codes = run_benchmarks(benchmarks, others, folder, console)
    rows = [
        [name, f"exit code {code}" if code else "done", str(folder / name)]
        for name, code in codes.items()
    ]
    print_table(console, Table(f"Suite {suite}", ["benchmark", "outcome", "folder"], rows, "lll"))
    if failed := [name for name, code in codes.items() if code]:
        raise UserError(
            f"{len(failed)} of {pluralize(len(codes), 'comparison')} failed: {', '.join(failed)}. "
            f"The same command with {SWEEP_DIR}={folder} goes on."
        )
    print_line(console, f"Suite: {folder}")


def run_benchmarks(
    benchmarks: Mapping[str, Sequence[str]], others: Sequence[str], folder: Path, console: Console
) -> dict[str, int]:
    """Run a comparison on each benchmark; return their exit codes."""
    codes = {}
    for number, (benchmark, overrides) in enumerate(benchmarks.items(), start=1):
        console.rule(f"{number} of {len(benchmarks)}: {benchmark}", align="left")
        place = [f"benchmark={benchmark}", f"{SWEEP_DIR}='{folder / benchmark}'"]
        command = [sys.executable, "-m", "attention_zoo", "compare", *overrides, *others, *place]
        codes[benchmark] = subprocess.run(command, check=False).returncode
    return codes


def check_benchmarks(benchmarks: Sequence[Sequence[str]], others: Sequence[str]) -> None:
    """Raise the refusal of the first benchmark if all are refused: then an option is wrong.

    One that is not refused ends this, and the others are refused when it is their turn.
    """
    if read_flags(others).keys() & {"--config-path", "--config-name", "--cfg", "--info"}:
        return  # Hydra itself composes from these.
    refusals = []
    for overrides in benchmarks:
        try:
            check_comparison([*overrides, *others])
        except UserError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def list_suites() -> list[str]:
    """Return the names of the suites of this package."""
    return sorted(Path(x.name).stem for x in SUITES.iterdir())


def read_suite(suite: str) -> dict[str, list[str]]:
    """Return the overrides that make each benchmark of a suite, by its name.

    A suite is a file: one of this package, by its name, or another one, by its path.
    """
    is_file = suite.endswith((".yaml", ".yml"))
    file = Path(suite) if is_file else SUITES / f"{suite}.yaml"
    if is_file and not file.is_file():
        raise UserError(f"{suite} is no file; name a suite ({', '.join(list_suites())}) or a file.")
    if not file.is_file():
        raise UserError(unknown_name_message("suite", suite, list_suites()))
    rule = (
        "a suite has a name and its overrides in each line, such as `parity: experiment=parity`; "
        f"{suite} has something else"
    )
    try:
        contents = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
        if not contents or not isinstance(contents, dict) or None in contents.values():
            raise UserError(f"{rule}.")
        # Quotes hold together what has blanks.
        benchmarks = {str(name): shlex.split(line) for name, line in contents.items()}
    except (YAMLError, OmegaConfBaseException, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{rule}: {' '.join(str(error).split())}.") from None
    for name, overrides in benchmarks.items():
        # The name is that of a folder, and of a column of a scoreboard.
        if not re.fullmatch(r"[\w-][\w.-]*", name) or not all("=" in x for x in overrides):
            raise UserError(f"{rule}: {name}: {contents[name]}.")
    return benchmarks
