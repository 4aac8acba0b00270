"""Searches, with a launcher that trains nothing."""

import sys

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.composition import register_plugins
from attention_zoo.tasks.sweeps.search import TrialsSweeper

optuna = pytest.importorskip("optuna")
FAILED = UserError("job failed")


class Launcher:
    """Gives each job what is next in `answers`: a loss, None, an error; or raises an interrupt."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.launched = []

    def launch(self, job_overrides, initial_job_idx):
        returns = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            self.launched.append((number, sorted(overrides)))
            answer = self.answers.pop(0)
            if answer is KeyboardInterrupt:
                raise KeyboardInterrupt
            failed = isinstance(answer, Exception)
            result = JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
            result.return_value = answer
            returns.append(result)
        return returns


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Searches in an empty folder; gives the study and what was launched."""

    def run(launcher, *overrides, n_trials=3, **options):
        monkeypatch.setattr(
            Plugins.instance(), "instantiate_launcher", lambda **_: launcher, raising=True
        )
        register_plugins("train")
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            given = ["hparams_search=optuna", *overrides, f"paths.logs={tmp_path}"]
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration("train", given, run_mode=RunMode.MULTIRUN)
            settings = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
            del settings["_target_"]
            sweeper = TrialsSweeper(**settings | {"n_trials": n_trials} | options)
            context = HydraContext(config_loader=loader, callbacks=None)
            sweeper.setup(hydra_context=context, task_function=None, config=config)
            sweeper.sweep([])
        return optuna.load_study(
            study_name=sweeper.study_name, storage=f"sqlite:///{tmp_path / 'optuna.db'}"
        )

    return run


def searched(launched):
    """The overrides of each trial that were drawn."""
    names = ("optimizer.lr", "model.dropout")
    return [[x for x in overrides if x.startswith(names)] for _, overrides in launched]


@pytest.mark.slow
def test_what_has_no_loss_has_failed_and_does_not_end_a_search(search, capsys):
    launcher = Launcher(FAILED, 2.0, None, 1.0)
    study = search(launcher, "jobs=3", n_trials=4)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.best_trial.number == 3
    assert "Best of 4 trials: 3, val/loss 1.0000: optimizer.lr=" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_command_goes_on_with_what_was_cut_off(search):
    cut = Launcher(3.0, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        search(cut)
    going_on = Launcher(2.0, 1.0)
    study = search(going_on)
    assert [trial.value for trial in study.trials] == [3.0, 2.0, 1.0]
    assert going_on.launched[0] == cut.launched[1]
    assert [number for number, _ in going_on.launched] == [1, 2]
    # Draws are new ones.
    assert searched(going_on.launched)[1] not in searched(cut.launched)
    search(Launcher())  # There is nothing to do.


def test_a_search_draws_the_same_every_time(search, tmp_path):
    first, second = Launcher(1.0, 2.0, 3.0), Launcher(1.0, 2.0, 3.0)
    search(first)
    (tmp_path / "optuna.db").unlink()
    search(second)
    assert searched(first.launched) == searched(second.launched)


def test_overrides_narrow_the_space_and_other_words_are_another_study(search):
    launcher = Launcher(1.0, 2.0, 3.0)
    space = ["model.dropout=0", "optimizer.lr=interval(0.1,0.2)", "model.layers=int(interval(1,2))"]
    one = search(launcher, *space, "attention=linear,multi_head")
    for _, overrides in launcher.launched:
        values = dict(x.split("=", 1) for x in overrides)
        assert values["model.dropout"] == "0" and values["model.layers"] in "12"
        assert 0.1 <= float(values["optimizer.lr"]) <= 0.2
        assert values["attention"] in ("linear", "multi_head")
    assert one.study_name != search(Launcher(1.0, 2.0, 3.0)).study_name


@pytest.mark.slow
def test_a_study_is_of_one_config_and_one_space(search):
    search(Launcher(1.0, 2.0, 3.0), study_name="mine")
    search(Launcher(1.0, 2.0, 3.0), "jobs=3", "logger=none", study_name="mine")
    for other in ("model.dim=64", "optimizer.lr=interval(0.1,0.2)"):
        with pytest.raises(UserError, match="composed of something else, or searched another"):
            search(Launcher(), other, study_name="mine")


@pytest.mark.parametrize(
    "overrides, options, reason",
    [
        (["seed=1,2"], {}, "other than the seed"),
        (["model.dropout=0", "optimizer.lr=0.1"], {}, "got none"),
        ([], {"n_trials": 0}, "n_trials must be a whole number of at least 1, got 0"),
        (["jobs=0"], {}, "jobs must be a whole number of at least 1, got 0"),
    ],
)
def test_a_search_of_nothing_is_refused(search, overrides, options, reason):
    with pytest.raises(UserError, match=reason):
        search(Launcher(), *overrides, **options)


def test_a_search_without_a_result_says_so(search):
    with pytest.raises(UserError, match="no trial of 3 has a val/loss"):
        search(Launcher(None, FAILED, None))


def test_the_first_failure_can_end_a_search(search):
    with pytest.raises(UserError, match="job failed"):
        search(Launcher(FAILED), "fail_fast=true")
    again = Launcher(1.0, 2.0, 3.0)
    search(again, "fail_fast=true")
    assert [number for number, _ in again.launched] == [0, 1, 2]


def test_plugins_are_registered_without_modules_made_up():
    register_plugins("train")
    assert TrialsSweeper in Plugins.instance().discover(TrialsSweeper.__base__)
    assert TrialsSweeper.__module__ == "attention_zoo.tasks.sweeps.search"
    assert not [name for name in sys.modules if name.startswith("hydra_plugins.attention_zoo")]


def test_optuna_is_named_where_it_is_missing(search, monkeypatch):
    monkeypatch.setattr("attention_zoo.tasks.sweeps.search.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'attention-zoo\[optuna\]'"):
        search(Launcher())
