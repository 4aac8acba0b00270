"""The order of a comparison, with a launcher that trains nothing."""

import json
import math

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison import sweeper as module
from attention_zoo.tasks.comparison.sweeper import ComparisonSweeper
from attention_zoo.tasks.comparison.trainings import length, trial_overrides
from attention_zoo.tasks.configuration.composition import parse_command
from attention_zoo.tasks.run_folder import JobRecord, RunFolder
from tests.conformance.cases import mark_exhaustive

BEST = {
    "multi_head": 0.004,
    "linear": 0.012,
    "gated_linear": 0.004,
    "delta": 100.0,  # beyond all rates that are tried
}
# Values of options that are better than the default.
BETTER = ("64.0",)


class Launcher:
    """Writes results into the folders of jobs: losses with a minimum at the rate of `BEST`."""

    def __init__(self, config, refused=(), killed=None):
        self.config, self.refused, self.killed = config, refused, killed
        self.jobs = []  # phase and overrides

    def launch(self, job_overrides, initial_job_idx):
        sweep = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        phase = sweep["subdir"].partition("/")[0]
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            options = dict(x.split("=", 1) for x in overrides)
            self.jobs.append((phase, options))
            folder = RunFolder(f"{self.config.hydra.sweep.dir}/{phase}/{number}")
            folder.path.mkdir(parents=True, exist_ok=True)
            name = options["attention"]
            if name in self.refused:
                folder.write_job(JobRecord(overrides, outcome="refused", reason="no such role"))
                continue
            if number == self.killed:
                folder.write_job(JobRecord(overrides, outcome="killed", reason="signal 9"))
                continue
            steps = int(options["trainer.max_steps"])
            rate = float(options.get("optimizer.lr", 0.004))
            loss = abs(math.log(rate / BEST[name])) + 10 / steps
            loss -= 0.1 * any(x in BETTER for x in options.values())
            if rate > 0.1 and name == "multi_head":
                folder.write_job(JobRecord(overrides, outcome="diverged", seconds=5.0))
                continue
            folder.write_job(JobRecord(overrides, outcome="trained", seconds=5.0))
            manifest = {"tokens_seen": 100 * steps, "tokens_per_second": 1000.0, "steps": steps}
            manifest["training_flops_per_token"] = 1e6
            folder.write_results({"val/loss": loss}, manifest)


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Compares in an empty folder; gives what was launched, and the candidates."""
    answers = []
    monkeypatch.setattr(
        "attention_zoo.tasks.comparison.answer.answer",
        lambda folder, candidates, *_: answers.append(candidates),
    )

    def run(*overrides, **launcher_options):
        invocation = parse_command("compare", [*overrides, f"hydra.sweep.dir={tmp_path}"])
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration(
                invocation.config_name, invocation.overrides[1:], run_mode=RunMode.MULTIRUN
            )
            launcher = Launcher(config, **launcher_options)
            monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", lambda **_: launcher)
            options = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
            del options["_target_"]
            sweeper = ComparisonSweeper(**options)
            context = HydraContext(config_loader=loader, callbacks=None)
            sweeper.setup(hydra_context=context, task_function=None, config=config)
            sweeper.sweep(list(config.hydra.overrides.task))
        return launcher.jobs, answers.pop() if answers else []

    return run


PAIR = "attention=multi_head,linear"
TWO = (PAIR, "trainer.max_steps=400")
CAUSAL = ("data=python_docs", "trainer.max_steps=400")


def of_phase(jobs, *phases):
    return [options for phase, options in jobs if phase in phases]


def trials_of(jobs, name, phase="tuning"):
    """Return the rates of an attention's trainings, with the options that the card names."""
    return [
        (
            float(options["optimizer.lr"]),
            *(f"{x}={value}" for x, value in options.items() if x.startswith("attention.")),
        )
        for options in of_phase(jobs, phase)
        if options["attention"] == name
    ]


def test_every_candidate_has_the_same_trials_and_tokens(compare):
    jobs, _ = compare(*TWO)
    for phase, number, steps in [("cost", 1, 20), ("tuning", 9, 100), ("shortlist", 2, 400)]:
        for name in ("multi_head", "linear"):
            of_name = [x for x in of_phase(jobs, phase) if x["attention"] == name]
            assert len(of_name) == number
            assert {x["trainer.max_steps"] for x in of_name} == {str(steps)}
            draws = {"++callbacks.attention_maps" not in x for x in of_name}
            assert draws == {phase == "cost"}
            assert not any("seed" in x for x in of_name)


def test_the_best_rate_is_confirmed_with_seeds_that_no_trial_had(compare):
    jobs, candidates = compare(*TWO, "seed=5", "seeds=4")
    assert [x.best_rate for x in candidates] == [0.004, 0.012]
    assert not any(x.is_at_edge for x in candidates)
    confirmed = of_phase(jobs, "confirm")
    assert {x["trainer.max_steps"] for x in confirmed} == {"400"}
    for name, rate in (("multi_head", "0.004"), ("linear", "0.012")):
        found = [x for x in confirmed if x["attention"] == name]
        assert [x["seed"] for x in found] == ["6", "7", "8", "9"]
        assert {x["optimizer.lr"] for x in found} == {rate}
    assert {x["seed"] for x in of_phase(jobs, "cost", "tuning", "shortlist")} == {"5"}


def test_without_option_trials_rates_alone_are_tuned(compare):
    jobs, _ = compare(
        "attention=multi_head,gated_linear,delta",
        *(*CAUSAL, "trials=5", "option_trials=0"),
    )
    ladder = [(0.00133,), (0.004,), (0.012,)]
    around, beyond = [(0.00231,), (0.00693,)], [(0.036,), (0.108,)]
    for name in ("multi_head", "gated_linear"):
        assert trials_of(jobs, name) == [*ladder, *around]
        assert trials_of(jobs, name, "shortlist") == [(0.00231,), (0.004,)]
        assert trials_of(jobs, name, "confirm") == [(0.004,)] * 3
    assert trials_of(jobs, "delta") == [*ladder, *beyond]
    assert trials_of(jobs, "delta", "shortlist") == beyond
    assert trials_of(jobs, "delta", "confirm") == [(0.108,)] * 3
    assert len(jobs) == 3 * (1 + 5 + 2 + 3)


def test_options_of_the_card_are_tried_at_the_best_rate(compare, capsys):
    jobs, candidates = compare("attention=gated_linear,multi_head", *CAUSAL)
    options = [(0.004, f"attention.temperature={x}") for x in ("4.0", "64.0")]
    assert trials_of(jobs, "gated_linear")[7:] == options
    assert trials_of(jobs, "multi_head")[7:] == [(0.00304,), (0.00526,)]
    assert options[1] in trials_of(jobs, "gated_linear", "shortlist")
    assert trials_of(jobs, "gated_linear", "confirm") == [options[1]] * 3
    assert candidates[0].best_setting == options[1] and not candidates[0].is_at_edge
    assert candidates[0].options_tried == [x for _, x in options]
    printed = capsys.readouterr().out
    tried = "gated_linear: attention.temperature=4.0, attention.temperature=64.0."
    assert f"Tuned besides the learning rate: {tried}" in printed
    assert "in place of options: multi_head (2)." in printed


def test_a_best_rate_beyond_those_tried_is_called_not_tuned(compare):
    _, candidates = compare("attention=multi_head,delta", "trainer.max_steps=400")
    assert [x.is_at_edge for x in candidates] == [False, True]
    assert len(candidates[1].losses) == 9
    assert max(candidates[1].rate_losses) == candidates[1].best_rate


def test_a_candidate_that_is_refused_is_left_out_with_its_reason(compare, capsys):
    jobs, candidates = compare(
        "attention=multi_head,delta,linear", "trainer.max_steps=400", refused=("delta",)
    )
    assert [x.name for x in candidates if x.cost is not None] == ["multi_head", "linear"]
    assert "delta is left out: refused: no such role" in capsys.readouterr().out
    assert not any(x["attention"] == "delta" for x in of_phase(jobs, "tuning", "confirm"))


def test_a_trial_that_was_killed_is_no_bad_rate_but_runs_again(compare):
    with pytest.raises(UserError, match=r"tuning/4 killed: signal 9. .* it goes on"):
        compare(*TWO, killed=4)
    _, candidates = compare(*TWO)
    assert [len(x.losses) for x in candidates] == [9, 9]


def test_a_plan_is_printed_without_a_trial(compare, capsys):
    jobs, _ = compare(PAIR, "--dry-run", "budget=2e6 tokens")
    assert {phase for phase, _ in jobs} == {"cost"}
    printed = capsys.readouterr().out
    # 2e6 / (2 candidates * 7.25 lengths * 100 tokens)
    assert "1,379" in printed and "28 trainings" in printed
    assert "No candidate has an option to tune: each tries 2 further rates." in printed


def test_a_second_launch_goes_on_with_the_plan_of_the_first(compare, tmp_path):
    first, _ = compare(PAIR, "budget=1h")
    steps = json.loads((tmp_path / "plan.json").read_text())["steps"]
    second, _ = compare(PAIR, "budget=1h", "reference=linear")  # which only the answer needs
    assert [x for x, _ in first] == [x for x, _ in second]
    assert {x["trainer.max_steps"] for x in of_phase(second, "confirm")} == {str(steps)}
    with pytest.raises(UserError, match=r"other options: it had budget=1h.* now budget=2h"):
        compare(PAIR, "budget=2h")


@pytest.mark.parametrize("content", ["[1", "[]", '{"steps": "a"}', '{"steps": 5}'])
def test_a_damaged_plan_is_refused_by_name(compare, tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json is not .* remove it"):
        compare(*TWO)


def test_results_without_what_the_plan_needs_leave_a_candidate_out(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "read_results", lambda folder: {"val/loss": 1.0})
    with pytest.raises(UserError, match=r"train\. multi_head: .*results\.json lacks steps"):
        compare(*TWO)


def test_a_trial_that_trained_but_has_no_loss_is_no_bad_rate(compare, monkeypatch):
    read = RunFolder.read_results
    monkeypatch.setattr(
        RunFolder,
        "read_results",
        lambda folder: {k: x for k, x in read(folder).items() if "tuning" not in str(folder.path)},
    )
    with pytest.raises(UserError, match=r"results\.json has no val/loss of a trial"):
        compare(*TWO)


def test_candidates_that_train_at_no_rate_are_no_answer(compare, monkeypatch):
    monkeypatch.setattr(module.Candidate, "best_rate", None)
    with pytest.raises(UserError, match=r"no candidate trains at any learning rate from .* lower"):
        compare(*TWO)


def test_a_reference_that_is_left_out_is_refused(compare):
    three = ["attention=multi_head,delta,linear", "trainer.max_steps=400", "reference=delta"]
    with pytest.raises(UserError, match="the reference must train, got reference=delta"):
        compare(*three, refused=("delta",))


def test_candidates_of_several_widths_are_compared_with_each_other(compare):
    _, candidates = compare("attention=linear", "model.dim=64,128", "trainer.max_steps=400")
    assert [x.name for x in candidates] == ["dim=64", "dim=128"]
    assert len({x.width for x in candidates}) == 1


def test_a_scoreboard_that_cannot_be_written_is_refused_before_the_training(compare, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another: scoreboard=FOLDER"):
        compare(*TWO, f"scoreboard={tmp_path / 'file'}")
    kept = tmp_path / "board" / "results" / "phrases" / "linear"
    kept.mkdir(parents=True)
    schedule = {"steps": 4, "trials": 5, "is_tuned": True}
    for damaged in ({}, {"schedule": schedule, "results": {}, "trials": [1]}):
        (kept / "1.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"1\.json is no result of a scoreboard; remove it"):
            compare(*TWO, f"scoreboard={tmp_path / 'board'}")


def test_widths_are_candidates_with_as_many_trials_each(compare):
    jobs, candidates = compare(*TWO, "sizes=3", "model.dim=64", "model.ffn_dim=128")
    assert [x.width for x in candidates] == [32, 64, 128, 32, 64, 128]
    assert candidates[2].label == "multi_head dim=128"
    tuned = of_phase(jobs, "tuning")
    for dim, ffn_dim in (("32", "64"), ("64", "128"), ("128", "256")):
        of_width = [x for x in tuned if x["model.dim"] == dim]
        assert len(of_width) == 2 * 9 and {x["model.ffn_dim"] for x in of_width} == {ffn_dim}


REFUSED = [
    (["attention=multi_head"], "two candidates or more"),
    ([*TWO, "optimizer.lr=0.1,0.2"], r"tunes optimizer.lr .* several values of optimizer.lr"),
    ([*TWO, "++optimizer.lr=0.1,0.2"], "several values of optimizer.lr"),
    ([*TWO, "hparams_search=optuna"], "searches by itself.*got hparams_search=optuna"),
    ([*TWO, "hydra/sweeper=basic"], "got hydra/sweeper=basic"),
    ([*TWO, "ckpt_path=last"], "every training of it is new, got ckpt_path=last"),
    ([*TWO, "seed=1,2"], "several values of seed"),
    ([*TWO, "trials=4"], "trials must be at least 5, got 4"),
    ([*TWO, "trials=many"], "trials must be a whole number"),
    ([*TWO, "seeds=1"], "seeds must be at least 3, got 1"),
    ([*TWO, "rate_factor=1"], "rate_factor must be a finite number above 1, got 1"),
    *(
        ([PAIR, f"budget={x}"], "budget must be a time")
        for x in ("5", "0", "1x", "inf", "1e999h", "-1h", "[1h]", "''", "true")
    ),
    ([*TWO, "budget=1h"], r"budget decides trainer.max_steps, got .* give one of them"),
    ([TWO[0], "trainer.max_steps=-1"], "needs budget=…, or a trainer.max_steps"),
    ([*TWO, "optimizer.lr=0"], "give a rate above 0"),
    ([*TWO, "reference=delta"], "reference must be one of multi_head, linear, got delta"),
    ([*TWO, "sizes=3", "model.dim=63"], "halves model.dim=63"),
    ([*TWO, "sizes=0"], "sizes must be at least 1, got 0"),
    (["attention=delta,linear", "trainer.max_steps=100,200"], "the same trainer.max_steps"),
    *(
        ([*TWO, f"{option}={value}"], f"{option} must be a whole number")
        for option in ("trials", "option_trials", "seeds", "sizes", "jobs", "seed")
        for value in ("null", "true", "1.5", "[3]")
    ),
    ([*TWO, "trials=99999999999"], "trials must be at most 1000"),
    ([*TWO, "option_trials=-1"], "option_trials must be at least 0, got -1"),
    ([*TWO, "option_trials=1001"], "option_trials must be at most 1000"),
    ([*TWO, "option_trials=11"], "or fewer option_trials, got .* and option_trials=11"),
    ([*TWO, "option_trials=1,2"], "several values of option_trials"),
    ([*TWO, "jobs=0"], "jobs must be at least 1, got 0"),
    ([*TWO, "seed=-1"], "seed must be at least 0, got -1"),
    ([*TWO, "seed=4294967294"], "seed must leave room for 3 new seeds"),
    *(([*TWO, f"rate_factor={x}"], "a finite number above 1") for x in ("inf", "nan", "-3")),
    ([*TWO, "rate_factor=true"], "rate_factor must be a number"),
    ([*TWO, "rate_factor=1e300"], "finite and above 0, got 0 to inf"),
    ([*TWO, "rate_factor=1.0001"], "differ in three digits|finite and above 0"),
    ([*TWO, "optimizer.lr=inf"], "finite and above 0, got inf to inf"),
    ([*TWO, "optimizer.lr=nan"], "finite and above 0, got nan to nan"),
    ([*TWO, "dry_run=maybe"], "dry_run must be true or false"),
    ([*TWO, "scoreboard=5"], "scoreboard must be text"),
    ([*TWO, "scoreboard="], "scoreboard must not be empty"),
    ([*TWO, "benchmark=x"], "give scoreboard=FOLDER too"),
    ([*TWO, "benchmark=a/b", "scoreboard=b"], "benchmark must be a name without slashes"),
    ([*TWO, "benchmark=..", "scoreboard=b"], "benchmark must be a name without slashes"),
    *(
        ([*TWO, x], f"compare decides {x.partition('=')[0]} itself, got {x}; leave it out")
        for x in (
            *("fail_fast=true", "overwrite=true", "trainer.max_epochs=3"),
            *("trainer.val_check_interval=10", "hydra.mode=RUN", "hydra.run.dir=x"),
            *("hydra.sweep.subdir=x", "hydra.sweeper.own_options=1"),
        )
    ),
    ([*TWO, "init_from=x.ckpt"], "every training of it is new, got init_from=x.ckpt"),
    ([*TWO, "trainer.max_time=1d"], "the length of its plan, got trainer.max_time=1d"),
    ([*TWO, "trainer.fast_dev_run=true"], "got trainer.fast_dev_run=True"),
    (["attention=linear,linear", TWO[1]], "must differ in what is trained, got linear and"),
    ([*TWO, "logger=none,csv"], "must differ in what is trained"),
    ([*TWO, "paths.logs=a,b"], "must differ in what is trained"),
    ([*TWO, "data.source.size=40,60"], "same data, got data.source.size=40 and 60"),
    ([*TWO, "data.seed=1,2"], "same data, got data.seed=1 and 2"),
    ([*TWO, "experiment=parity,recall"], "same data, got data=parity and recall"),
    ([*TWO, "model.dim=64,128", "sizes=2"], "sizes=2 varies model.dim itself"),
    ([*TWO, "+foo=1"], "no option 'foo'"),
    ([*TWO, "model.dim=abc"], "model.dim must be a whole number"),
    ([*TWO, "compile=foo"], "compile must be true or false"),
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    mark_exhaustive((row, row[0][-1].partition("=")[0]) for row in REFUSED),
)
def test_what_cannot_be_compared_is_refused(compare, overrides, message):
    with pytest.raises(UserError, match=message):
        compare(*overrides)


def test_the_rates_of_an_experiment_give_way_and_its_other_sweeps_are_candidates(compare):
    jobs, candidates = compare(
        "experiment=mad", "attention=multi_head,linear", "budget=1e8 tokens", "optimizer.lr=0.004"
    )
    assert {x.name for x in candidates} == {
        *("weight_decay=0 multi_head", "weight_decay=0 linear"),
        *("weight_decay=0.1 multi_head", "weight_decay=0.1 linear"),
    }
    assert len({x["optimizer.lr"] for x in of_phase(jobs, "tuning")}) > 3
    assert {x["trainer.max_epochs"] for x in of_phase(jobs, "confirm")} == {"-1"}


def test_no_candidate_may_be_left(compare):
    with pytest.raises(UserError, match=r"two candidates that train\. delta: refused"):
        compare("attention=multi_head,delta", refused=("delta",))


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ("model.dim=64", False),
        ("callbacks=default", True),
        ("++callbacks.samples.probes=2", True),
        ("~callbacks", True),
    ],
)
def test_trials_draw_nothing_unless_callbacks_were_given(given, drawn):
    overrides = trial_overrides(["attention=linear", given])
    assert {"test=false", "lengths=[]"} <= {*overrides}
    assert ("++callbacks.attention_maps=null" not in overrides) == drawn
    assert ("++callbacks.samples=null" not in overrides) == drawn


def test_trials_are_validated_within_their_length():
    overrides = dict(x.split("=") for x in length(3))
    assert overrides["trainer.max_steps"] == "3" and overrides["trainer.max_epochs"] == "-1"
    assert overrides["trainer.val_check_interval"] == "1"
