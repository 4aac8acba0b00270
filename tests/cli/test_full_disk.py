"""A disk that is full from the first step on costs the files, and not the run."""

import errno
import os

import pytest

from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.composition_errors import explain_error
from tests.cli.conftest import QUICK

# The operating system refuses every byte of a file, as a full disk or a quota does.
FULL_DISK = """
import resource
from lightning.pytorch import Callback

class FullDisk(Callback):
    def on_train_start(self, trainer, pl_module):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
"""
OPTIONS = [x for x in QUICK if not x.startswith("callbacks")]
OPTIONS += ["+callbacks.full_disk._target_=full_disk.FullDisk", "logger=[csv,tensorboard]"]
OPTIONS += ["callbacks.attention_maps.every_n_validations=1", "trainer.max_steps=4"]
OPTIONS += ["trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]


def test_a_disk_that_is_full_at_the_start_is_said_in_a_line():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = str(explain_error(error, Invocation("train", "train", [])))
    assert message.startswith(os.strerror(errno.ENOSPC)) and "hydra.run.dir=FOLDER" in message


@pytest.mark.slow
def test_a_full_disk_costs_the_files_and_not_the_run(program, tmp_path):
    pytest.importorskip("resource")
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    done = program("train", *OPTIONS)
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    said = [x for x in (done.stdout + done.stderr).splitlines() if os.strerror(errno.EFBIG) in x]
    for name in ("run/csv", "run/tensorboard", "run/results.json"):
        assert sum(name in line for line in said) == 1, said
    assert any("figures" in line for line in said) and any("last.ckpt" in line for line in said)
    assert "test/bleu" in done.stdout  # the results are printed all the same
    assert not (tmp_path / "run/results.json").exists()
