"""What is built of the project works elsewhere, and claims no name but its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("attention_zoo", "tasks", "conf")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, once it has ended well; it is not to see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    # Of a copy, since building leaves files behind, and takes in those that it finds.
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        leftovers = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=leftovers)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def elsewhere(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of another environment, where the wheel is installed."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=environment)
    # The dependencies are this environment's. Its own .pth files, such as that of an editable
    # install, are not read from there.
    site_packages = next(environment.glob("lib/python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def expected() -> set[str]:
    """The files that a user needs, by their places in the package."""
    return {
        str(Path("attention_zoo", *path.relative_to(ROOT).parts[part == "attention_zoo" :]))
        for part in PACKAGES
        for pattern in ("*.py", "*.yaml", "*.css", "*.html", "*.js", "py.typed", "cards.json")
        for path in (ROOT / part).rglob(pattern)
    }


def test_the_wheel_holds_one_package(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        tops = {name.split("/")[0] for name in names}
        dist_info = next(top for top in tops if top.endswith(".dist-info"))
        assert tops == {"attention_zoo", dist_info}
        assert {name for name in names if not name.startswith(dist_info)} == expected()
        assert f"{dist_info}/licenses/LICENSE" in names
        assert wheel.read(f"{dist_info}/top_level.txt").decode().split() == ["attention_zoo"]


def test_the_sdist_holds_files_for_links(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        files = {
            member.name.partition("/")[2]: member
            for member in sdist.getmembers()
            if not member.isdir()
        }
    assert expected() <= set(files)
    assert all(member.isfile() for member in files.values())


def test_the_wheel_trains_beside_files_of_the_same_names(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("raise RuntimeError('a file of the user was imported')\n")
    (tmp_path / "conf" / "attention").mkdir(parents=True)
    (tmp_path / "conf" / "__init__.py").write_text("raise RuntimeError('conf was imported')\n")
    (tmp_path / "conf" / "train.yaml").write_text("theirs: true\n")
    (tmp_path / "conf" / "attention" / "multi_head.yaml").write_text("theirs: true\n")
    place = run(
        elsewhere, "-c", "import attention_zoo; print(attention_zoo.__file__)", cwd=tmp_path
    )
    assert Path(place).is_relative_to(elsewhere.parents[1])
    # As a module: Python then looks into the folder first of all.
    run(
        *(elsewhere, "-m", "attention_zoo", "train"),
        *("model=tiny", "tokenizer=bytes", "schedule=constant", "trainer.max_steps=1"),
        *("data.source.size=200", "data.source.valid=20", "data.source.test=20"),
        *("callbacks=minimal", "logger=none", "trainer.accelerator=cpu", "hydra.run.dir=run"),
        cwd=tmp_path,
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "test/loss" in results


def test_the_wheel_installs_the_command(elsewhere: Path, tmp_path: Path) -> None:
    assert "multi_head" in run(elsewhere.with_name("attention-zoo"), "list", cwd=tmp_path)


def test_the_wheel_lists_without_torch(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    assert "multi_head" in run(elsewhere, "-m", "attention_zoo", "list", cwd=tmp_path)


@pytest.mark.parametrize(
    "checker",
    [
        ["mypy", "--strict", "--python-executable"],
        ["basedpyright", "--level", "error", "--pythonpath"],
    ],
    ids=lambda checker: checker[0],
)
def test_type_checkers_see_the_library(checker: list[str], elsewhere: Path, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("typed_user.py"), tmp_path)
    program, *options = checker
    run(Path(sys.executable).with_name(program), *options, elsewhere, "typed_user.py", cwd=tmp_path)
