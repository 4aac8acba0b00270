"""The manifest tells which code made a result, and where."""

import subprocess
import sys

import torch

from attention_zoo.tasks.training.manifest import collect_environment, git_commit


def test_the_environment_holds_versions_and_hardware():
    environment = collect_environment()
    assert environment["versions"]["python"] == "{}.{}.{}".format(*sys.version_info)
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["hardware"]["threads"] == torch.get_num_threads()
    assert environment["hardware"]["cpu"]


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    code, untracked = tmp_path / "code.py", tmp_path / "site-packages.py"
    code.write_text("a = 1\n")
    untracked.write_text("")
    assert git_commit(code) is None
    git("init")
    git("add", "code.py")
    git("commit", "-m", "a")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert git_commit(code) == commit
    code.write_text("a = 2\n")
    assert git_commit(code) == f"{commit}-dirty"
    assert git_commit(untracked) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(code) is None
