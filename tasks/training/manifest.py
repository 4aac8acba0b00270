"""Collect the code, packages and hardware of a result, for `results.json`."""

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("attention-zoo", "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics"),
    *("tokenizers", "sacrebleu", "babel", "num2words", "datasets", "wandb"),
)
# A model that was matched to a baseline lies within this share of it.
MATCH_TOLERANCE = 0.01


def collect_environment() -> dict[str, Any]:
    """Return the code's git commit, the versions of Python and packages, and the hardware."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    commit = git_commit(Path(__file__).resolve())
    return {"git_commit": commit, "versions": versions, "hardware": describe_hardware()}


def git_commit(file: Path) -> str | None:
    """Return the commit of a file's repository; None, if git does not track the file.

    It ends in "-dirty" where tracked files were changed.
    """

    def git(*arguments: str) -> str:
        # `git describe --dirty` would write the index, and leave a lock where the disk is full.
        command = ["git", "--no-optional-locks", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # A virtual environment often lies inside another project's repository, whose commit says
        # nothing about this code.
        git("ls-files", "--error-unmatch", str(file))
        changes = git("status", "--porcelain", "--untracked-files=no")
        commit = git("describe", "--always", "--abbrev=40", "--exclude=*")
        return f"{commit}-dirty" if changes else commit
    except (OSError, subprocess.SubprocessError):
        return None


def describe_hardware() -> dict[str, Any]:
    """Return the processor, torch's number of threads, and the GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "gpus": gpus}


def cpu_model() -> str:
    """Return the name of the processor."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
