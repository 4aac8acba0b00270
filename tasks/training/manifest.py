"""Where a result was obtained: code, packages and hardware, for `results.json`."""

import platform
import subprocess
import sys
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
    """Return `git_commit`, the code's, `versions` of Python and of packages, and `hardware`."""
    return {
        "git_commit": git_commit(Path(__file__).resolve()),
        "versions": {"python": platform.python_version(), **installed_versions()},
        "hardware": describe_hardware(),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of those of `PACKAGES` that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit(file: Path) -> str | None:
    """Return the commit of a file's repository; None, if git does not track the file.

    It ends in "-dirty" where tracked files were changed.
    """

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(file.parent), *arguments]
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    # A virtual environment often lies inside another project's repository, whose commit says
    # nothing about this code.
    if git("ls-files", "--error-unmatch", str(file)) is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


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
