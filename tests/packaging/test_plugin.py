"""The attention of CONTRIBUTING, in a package of its own, is one of the zoo's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "scaled_cosine"
# Blocks whose first line is a comment that names their file.
FILES = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, installed as a package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name, text in FILES.findall((ROOT / "CONTRIBUTING.md").read_text()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    run("-m", "pip", "install", *offline, "--target", target, source, cwd=source)
    return target


def run(*arguments: str | Path, cwd: Path, plugins: Path | None = None) -> str:
    """What Python prints, once it has ended well, with this checkout and a folder of plugins."""
    paths = [ROOT] if plugins is None else [plugins, ROOT]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_ten_lines_below_its_card() -> None:
    code = dict(FILES.findall((ROOT / "CONTRIBUTING.md").read_text()))[
        "zoo_scaled_cosine/__init__.py"
    ]
    body = code.partition("class ")[2].splitlines()
    statements = [line for line in body if line.strip() and line.strip()[0] not in '"#']
    assert len(statements) <= 10


def test_the_command_line_knows_it(installed: Path, tmp_path: Path) -> None:
    program = ("-m", "attention_zoo")
    assert NAME in run(*program, "list", cwd=tmp_path, plugins=installed)
    assert NAME not in run(*program, "list", cwd=tmp_path)
    assert "2111.09883" in run(*program, "show", NAME, cwd=tmp_path, plugins=installed)
    composed = run(
        *program, "train", "--cfg", "job", f"attention={NAME}", cwd=tmp_path, plugins=installed
    )
    assert f"name: {NAME}" in composed


def test_it_trains(installed: Path, tmp_path: Path) -> None:
    run(
        *("-m", "attention_zoo", "train", f"attention={NAME}", "position=alibi"),
        *("model=tiny", "tokenizer=bytes", "schedule=constant", "trainer.max_steps=2"),
        *("data.source.size=200", "data.source.valid=20", "data.source.test=20"),
        *("callbacks=minimal", "logger=none", "trainer.accelerator=cpu", "hydra.run.dir=run"),
        cwd=tmp_path,
        plugins=installed,
    )
    assert "test/loss" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_the_conformance_suite_holds_it_to_the_contract(installed: Path) -> None:
    report = run(
        *("-m", "pytest", "tests/conformance", "-k", NAME, "-p", "no:cacheprovider", "-vv"),
        cwd=ROOT,
        plugins=installed,
    )
    passed = {line.split("::")[0] for line in report.splitlines() if " PASSED" in line}
    properties = {
        f"tests/conformance/{path.name}" for path in ROOT.glob("tests/conformance/test_*.py")
    }
    properties.remove("tests/conformance/test_search_spaces.py")  # It names no options to tune.
    assert passed == properties


def test_a_plugin_that_cannot_be_imported_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attention_zoo]\nbroken = broken\n")
    program = ("-m", "attention_zoo")
    assert "multi_head" in run(*program, "list", cwd=tmp_path, plugins=tmp_path)
    composed = run(*program, "train", "--cfg", "job", cwd=tmp_path, plugins=tmp_path)
    assert "attention:" in composed
