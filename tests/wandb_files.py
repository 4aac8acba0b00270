"""What runs of W&B have written, read back."""

import json
import subprocess
import sys
from pathlib import Path


def inspect(run: Path, *flags: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(run: Path) -> dict:
    return json.loads(inspect(run, "--summary"))


def history(run: Path) -> list[dict]:
    records = [json.loads(line) for line in inspect(run).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def runs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "wandb").glob("*run-*") if not path.is_symlink())
