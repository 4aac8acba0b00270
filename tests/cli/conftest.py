"""The program as a process, in a folder of its own."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attention_zoo.tasks.commands.cli import main

ROOT = Path(__file__).parents[2]
# The smallest model and data that a test can do with.
SMALL = [
    "model=tiny",
    "model.dim=16",
    "model.heads=2",
    "model.layers=1",
    "model.ffn_dim=32",
    "tokenizer=characters",
]
LINES = [
    "data.source.size=60",
    "data.source.valid=8",
    "data.source.test=8",
    "decoding.max_extra=5",
    "decoding.max_ratio=0.5",
]
# A training of seconds, for what is about many of them.
QUICK = [
    *SMALL,
    "data.source.size=60",
    "data.source.valid=8",
    "data.source.test=8",
    "data.tokens_per_batch=512",
    "decoding.max_extra=2",
    "decoding.max_ratio=0.1",
    "callbacks=minimal",
]
TEXT = ["task=language_modeling", *SMALL, "data.batch_size=4", "data.context_length=16"]


class Program:
    """`python -m attention_zoo`, started in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "attention_zoo", *arguments],
            cwd=self.folder,
            env=self.environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
        keep |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        keep |= {"WANDB_MODE": "offline", "ATTENTION_ZOO_CACHE": str(self.folder / "cache")}
        return keep | (more or {})

    def __call__(
        self, *arguments: str, input: str | bytes = "", code: int = 0, **env: str
    ) -> subprocess.CompletedProcess:
        """Run to the end; the exit code must be `code`."""
        raw = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [sys.executable, "-m", "attention_zoo", *arguments],
            cwd=self.folder,
            env=self.environment(env),
            input=raw,
            capture_output=True,
        )
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def refuses(self, *arguments: str, code: int = 2, input: str | bytes = "") -> str:
        """Run what must be refused; return the one line that says why."""
        return one_line(self(*arguments, code=code, input=input).stderr, code)

    def runs(self, task: str = "translation") -> list[Path]:
        return sorted((self.folder / "logs" / task / "runs").glob("*"))


def one_line(errors: str, code: int) -> str:
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("refused: " if code == 3 else "error: "), lines
    return lines[0]


@pytest.fixture
def refuses(monkeypatch, capsys):
    """As `Program.refuses`, in this process: it spares the imports."""

    def check(*arguments, folder, code=2, input=b""):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(folder / "cache"))
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", ["attention-zoo", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        assert exit.value.code == code
        return one_line(capsys.readouterr().err, code)

    yield check
    os.environ.pop("HYDRA_FULL_ERROR", None)


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


def interrupt(process: subprocess.Popen) -> None:
    """Ctrl-C: the terminal sends it to every process of the group."""
    os.killpg(process.pid, signal.SIGINT)
