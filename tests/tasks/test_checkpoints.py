"""Checkpoints as files: what is one of ours, and which is the newest."""

import os
from pathlib import Path

import pytest
import torch

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.task_spec import TRANSLATION
from attention_zoo.tasks.training.checkpoints import (
    last_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    require_task,
)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(BadInput, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    inside = tmp_path / "run" / "checkpoints" / "best.ckpt"
    inside.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, inside)
    with pytest.raises(BadInput, match=r"Did you mean .*best\.ckpt"):
        read_checkpoint(tmp_path / "run")
    with pytest.raises(BadInput, match="no config inside"):
        read_checkpoint(inside)
    # Unpickling could execute anything: such a file is not read.
    torch.save({"attention_zoo": Path("x")}, inside)
    with pytest.raises(BadInput, match="cannot be read"):
        read_checkpoint(inside)


def test_the_newest_is_the_one_written_last(tmp_path):
    assert newest_checkpoint(tmp_path, "translation", "last.ckpt") is None
    with pytest.raises(UserError, match="no checkpoint under"):
        last_checkpoint(RunFolder(tmp_path), tmp_path, "translation")
    paths = [tmp_path / "translation" / "runs" / n / "checkpoints" / "last.ckpt" for n in "ab"]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (0, 100 - age))
    assert last_checkpoint(RunFolder(tmp_path), tmp_path, "translation") == paths[0]


def test_each_task_has_its_command():
    with pytest.raises(UserError, match="use attention-zoo generate"):
        require_task({"task": {"name": "language_modeling"}}, TRANSLATION)
