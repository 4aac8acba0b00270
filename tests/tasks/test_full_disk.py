"""A strategy that writes its own files goes on where it cannot write them."""

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from attention_zoo.tasks.training.checkpoint_files import guard_own_files

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wrapped(error: BaseException, cause: OSError) -> BaseException:
    """Return an error that was raised while the other one was handled."""
    error.__context__ = cause
    return error


def failing_strategy(error: BaseException) -> Any:
    """Return a strategy that writes a part of its files, and raises an error."""

    def save_checkpoint(checkpoint: dict[str, Any], filepath: Path, *_: Any) -> None:
        filepath.mkdir()
        (filepath / "part").write_text("of a checkpoint")
        raise error

    strategy = SimpleNamespace(save_checkpoint=save_checkpoint, is_global_zero=True)
    guard_own_files(strategy)  # type: ignore[arg-type]
    return strategy


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        wrapped(RuntimeError("unexpected pos"), FULL),
        CheckpointException("failed", {1: (wrapped(RuntimeError(), FULL), None)}),  # type: ignore[dict-item]
    ],
)
def test_a_full_disk_is_said_and_leaves_no_part(error, tmp_path, caplog):
    strategy, path = failing_strategy(error), tmp_path / "last.ckpt"
    with caplog.at_level(logging.WARNING):
        # As Lightning's Trainer calls it.
        strategy.save_checkpoint({"global_step": 7}, path, storage_options=None)
    assert "was not written at step 7: No space left on device" in caplog.text
    assert not path.exists()


def test_other_errors_are_raised(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"):
        failing_strategy(RuntimeError("shapes differ")).save_checkpoint({}, tmp_path / "a")
