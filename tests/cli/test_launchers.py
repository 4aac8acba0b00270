"""Sweeps by other launchers of Hydra's, one of them SLURM; searches by Optuna and by W&B."""

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hydra.errors import MissingConfigException
from wandb.sdk.launch.sweeps.utils import (
    create_sweep_command_args,
    make_launch_sweep_entrypoint,
)

from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.composition_errors import explain_error
from tests.cli.conftest import QUICK, ROOT
from tests.cli.slurm import Slurm

TINY = [*QUICK, "logger=none", "trainer.max_steps=2"]


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def outcomes(sweep: Path) -> list[str]:
    records = sorted(sweep.glob("*/job.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text())["outcome"] for path in records]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, words, expected",
    [
        (["basic"], ["position=alibi", "attention=linear,multi_head"], "refused"),
        (["joblib", "hydra.launcher.n_jobs=2"], ["optimizer.lr=abc,0.01"], "failed"),
    ],
)
def test_other_launchers_run_jobs_as_ours_does(program, launcher, words, expected):
    name, *options = launcher
    if name == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code = 2 if expected == "failed" else 0
    sweep = program.folder / "sweep"
    rest = [*words, *TINY, f"hydra.sweep.dir={sweep}"]
    done = program("train", "-m", f"hydra/launcher={name}", *options, *rest, code=code)
    assert outcomes(sweep) == [expected, "trained"]
    assert results(sweep / "1")["val/loss"] > 0
    if expected == "failed":
        message = "error: job 0 failed: optimizer.lr must be a number, got abc."
        assert done.stderr.splitlines()[-1] == message
    # Ours takes up what the other one has left, as they are composed of the same.
    again = program("train", "-m", *rest, code=code)
    left = 1 if expected == "failed" else 2
    assert f"{left} of 2 jobs have their result already" in again.stdout


def test_what_only_our_launcher_does_is_refused_to_others(program):
    done = program("train", "-m", "hydra/launcher=basic", "seed=1,2", "fail_fast=true", code=2)
    assert "fail_fast are for hydra/launcher=processes" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("launcher, extra", [("joblib", "joblib"), ("submitit_slurm", "slurm")])
def test_a_launcher_that_is_not_installed_says_what_to_install(launcher, extra):
    error = MissingConfigException("", f"hydra/launcher/{launcher}", ["basic", "processes"])
    message = explain_error(error, Invocation("train", "train", []))
    assert f"pip install 'attention-zoo[{extra}]'" in str(message)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_killed(program):
    optuna = pytest.importorskip("optuna")
    long = ["trainer.max_steps=120", "trainer.val_check_interval=20"]
    command = ["train", "hparams_search=optuna", "hydra.sweeper.n_trials=2", *TINY, *long]
    search = program.start(*command)
    study = program.folder / "logs" / "translation" / "searches"
    while not (last := [*study.glob("*/1/checkpoints/last.ckpt")]):
        assert search.poll() is None, search.communicate()
        time.sleep(0.05)
    killed = last[0].parents[1]
    kill_all(search.pid)
    search.communicate()  # Closes its pipes too.
    first = (killed.parent / "0" / "job.json").stat().st_mtime_ns
    done = program(*command)
    assert "1 finished trial\n" in done.stdout and "Best of 2 trials" in done.stdout
    assert "ckpt_path=" in (killed / ".hydra" / "overrides.yaml").read_text()
    assert (killed.parent / "0" / "job.json").stat().st_mtime_ns == first
    storage = f"sqlite:///{program.folder / 'logs' / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert [trial.value for trial in trials] == [
        results(killed.parent / number)["val/loss"] for number in "01"
    ]
    # One more, and nothing of the others.
    more = program(*command[:2], "hydra.sweeper.n_trials=3", *command[3:])
    assert "2 finished trials" in more.stdout and "Best of 3 trials" in more.stdout


def kill_all(pid: int) -> None:
    """A process and all below it, which have sessions of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, signal.SIGKILL)
    for child in children:
        kill_all(int(child))


@pytest.mark.slow
def test_the_arguments_of_an_agent_of_wandb_compose(program):
    """wandb's own code makes the arguments of what the server might have drawn."""
    sweep = yaml.safe_load((ROOT / "sweep.yaml").read_text())
    drawn = {
        name: {"value": option.get("value", option.get("values", [option.get("min")])[0])}
        for name, option in sweep["parameters"].items()
    }
    command, arguments = make_launch_sweep_entrypoint(
        create_sweep_command_args({"args": drawn}), sweep["command"]
    )
    assert command == ["${env}", "attention-zoo", "train"] and len(arguments) == len(drawn)
    composed = yaml.safe_load(program("train", *arguments, "--cfg", "job").stdout)
    for name, option in drawn.items():
        if "." in name:
            group, key = name.split(".")
            assert composed[group][key] == option["value"], name
    assert composed["attention"]["name"] == drawn["attention"]["value"]
    assert sweep["metric"]["name"] == "val/loss"


@pytest.fixture(scope="module")
def slurm():
    """A SLURM of one node; without one, its tests are skipped."""
    # Not the folder of the tests: names of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    try:
        there = Slurm(folder)
    except RuntimeError as error:
        shutil.rmtree(folder)
        pytest.skip(f"There is no SLURM: {error}")
    yield there
    there.stop()
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, expected",
    [
        # SLURM starts one task, and Lightning the other process.
        (["trainer=default,ddp", "trainer.accelerator=cpu"], [1, 2]),
        # SLURM starts both.
        (["trainer=ddp", "hydra.launcher.tasks_per_node=2"], [2]),
    ],
)
def test_slurm_runs_a_sweep(program, slurm, options, expected):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = program.folder / "sweep"
    command = ["train", "-m", "hydra/launcher=submitit_slurm", *options, *TINY]
    command += [f"hydra.sweep.dir={sweep}", "hydra.launcher.cpus_per_task=1"]
    program(*command, **slurm.environment)
    assert outcomes(sweep) == ["trained"] * len(expected)
    runs = [sweep / str(number) for number in range(len(expected))]
    assert all(results(run)["val/loss"] > 0 for run in runs)
    # A run fails, where not as many processes meet as it asks for.
    trainers = [yaml.safe_load((run / "config.yaml").read_text())["trainer"] for run in runs]
    assert [trainer["devices"] for trainer in trainers] == expected
    times = [(run / "results.json").stat().st_mtime_ns for run in runs]
    program(*command, **slurm.environment)
    assert [(run / "results.json").stat().st_mtime_ns for run in runs] == times
