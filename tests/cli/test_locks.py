"""Two commands at once in one folder."""

import pytest

from attention_zoo.tasks.folder_lock import locked_folder
from tests.cli.conftest import QUICK

PAIR = ["attention=multi_head,linear", "trainer.max_steps=8"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", *QUICK], "hydra.run.dir"),
        (["train", "-m", *QUICK, "seed=1,2"], "hydra.sweep.dir"),
        (["train", "-m", *QUICK, "seed=1,2", "hydra/launcher=basic"], "hydra.sweep.dir"),
        (["train", *QUICK, "hparams_search=optuna"], "hydra.sweep.dir"),
        (["compare", *QUICK, *PAIR], "hydra.sweep.dir"),
        (["compare", "suite=small", *PAIR[:1], "model=tiny"], "hydra.sweep.dir"),
    ],
    ids=["train", "sweep", "basic launcher", "search", "compare", "suite"],
)
def test_the_second_one_is_refused_before_it_writes(refuses, tmp_path, arguments, option):
    folder = tmp_path / "results"
    with locked_folder(folder, option):
        line = refuses(*arguments, f"{option}={folder}", "logger=none", folder=tmp_path)
    assert " is in use by process " in line and "results" in line and f"another {option}." in line
    assert {x.name for x in folder.iterdir()} <= {".lock", ".hydra", "attention-zoo.log"}
