"""Random overrides of all groups, legal and not: each trains a step, or is refused in few lines.

Every option that the configs have or could have is drawn from, so that a new one is tried without
an edit here. ATTENTION_ZOO_FUZZ sets the number of compositions.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from collections import Counter
from functools import cache
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attention_zoo.tasks.commands import cli, train
from attention_zoo.tasks.configuration.conf_files import choice_target, list_choices
from attention_zoo.tasks.configuration.option_checks import existing_options
from attention_zoo.tasks.configuration.overrides import infer_task
from tests.conf.test_conf import CONF, composed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
EXAMPLES = int(os.environ.get("ATTENTION_ZOO_FUZZ", "500"))
TRAINED_SHARE = 2  # one composition of so many is trained, if it is accepted
# They start processes, or write where they are told to.
EXCLUDED_GROUPS = ("hparams_search", "hydra", "paths")
GROUPS = sorted(x.name for x in CONF.iterdir() if x.is_dir() and x.name not in EXCLUDED_GROUPS)
EXCLUDED = ("paths", "trainer.num_nodes", "trainer.devices", "trainer.profiler", "hydra")
VALUES = [
    -1,
    0,
    1,
    2,
    3,
    16,
    0.0,
    0.5,
    1.5,
    1e-3,
    True,
    False,
    None,
    "abc",
    "''",
    "min",
    "val/bleu",
]
VALUES += ["val/bleu", "[]", "[1,2]", "[0.9,0.95]", "[a,b]", "{a:1}", "32-true", "64-true", "auto"]
SMALL = {
    "model": "tiny",
    "callbacks": "minimal",
    "logger": "none",
    "model.dim": 16,
    "model.heads": 2,
    "model.layers": 1,
    "model.ffn_dim": 32,
    "trainer.max_steps": 1,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,  # more would start processes
    "test": "false",
}
GENERATED = ("Phrases", "PythonDocs", "diagnostics")  # sources that need no files


class Composed(Exception):
    """Ends a run when its config has been accepted."""


@cache
def tree(*groups):
    """Return all options that a choice of groups has, with their values; the defaults' else."""
    try:
        config = composed(*groups)
    except Exception:
        config = composed()
    values = OmegaConf.create(config)
    options = [x for x in existing_options(config) if not x.startswith(EXCLUDED)]
    return {x: OmegaConf.select(values, x) for x in options}


def draw_value(draw, option, own):
    """Draw the value of an option: mostly its own, or another of that type, else any."""
    kind = draw(st.sampled_from(["own", "own", "own", "similar", "similar", "any"]))
    if kind == "any" or option in SMALL or OmegaConf.is_config(own):
        value = draw(st.sampled_from(VALUES))
    elif kind == "similar" and isinstance(own, int | float):
        choices = [True, False] if isinstance(own, bool) else [own, own + 1, 2 * own, own / 2]
        value = type(own)(draw(st.sampled_from(choices)))
    else:
        value = own
    return json.dumps(value) if isinstance(value, bool | None) else value


def draw_overrides(draw):
    """Draw the overrides of a training: choices of groups, then values of options."""
    groups = []
    for group in draw(st.lists(st.sampled_from(GROUPS), max_size=3, unique=True)):
        choices = list_choices(group)
        form = draw(st.integers(0, 39))
        choice = draw(st.sampled_from(choices))
        wrong = [
            f"{group}=null",
            f"~{group}",
            f"{group}=[{choice},{choices[0]}]",
            f"{group}={choice}x",
        ]
        groups.append(wrong[form] if form < len(wrong) else f"{group}={choice}")
    legal = [
        x
        for x in groups
        if x.count("=") == 1 and x.partition("=")[2] in list_choices(x.partition("=")[0])
    ]
    task = infer_task(legal)
    options = tree(*legal, *([task] if task else []))
    values = []
    for option in draw(st.lists(st.sampled_from([*options]), max_size=3, unique=True)):
        prefix = draw(st.sampled_from([*[""] * 16, "+", "++", "++", "~"]))
        typo = draw(st.sampled_from([*[""] * 19, "x"]))
        value = draw_value(draw, option, options[option])
        values.append(f"~{option}" if prefix == "~" else f"{prefix}{option}{typo}={value}")
    return [*groups, *values]


def small(overrides):
    """Return overrides that make a model small, without those that the given ones decide."""
    names = {x.lstrip("+~").partition("=")[0] for x in overrides}
    return [f"{name}={value}" for name, value in SMALL.items() if name not in names]


def run(overrides, *, trains):
    """Run `train`; return its exit code, its error lines, the accepted config, if it trained."""
    accepted, prepare, trained = [], train.prepare, trains

    def stop(config, console, *others):
        accepted.append(config)
        source = choice_target("data", config["choices"]["data"]) and config["data"]["source"]
        # A group of processes would outlive the run, here in the process of the tests.
        alone = config["trainer"].get("strategy", "auto") == "auto"
        if not (trains and alone and any(x in source["_target_"] for x in GENERATED)):
            raise Composed
        for key, size in (("size", 40), ("valid", 4), ("test", 4)):
            if key in source and not any(f"data.source.{key}" in x for x in overrides):
                source[key] = size
        return prepare(config, console, *others)

    errors = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        patch.setattr(train, "prepare", stop)
        patch.setattr(sys, "argv", ["attention-zoo", "train", *small(overrides), *overrides])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        code = 0
        with contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                cli.main()
            except Composed:
                trained = False  # its source needs files, or it was not to be trained
            except SystemExit as exit:
                code = exit.code
    return code, errors.getvalue().strip().splitlines(), (accepted or [None])[0], trained


def test_each_composition_trains_or_is_refused(tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    counts = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.composite(draw_overrides)())
    def check(overrides):
        counts["composed"] += 1
        trains = counts["composed"] % TRAINED_SHARE == 0
        code, errors, config, trained = run(overrides, trains=trains)
        if code:
            counts["refused"] += 1
            assert code in (2, 3) and 1 <= len(errors) <= 3, (overrides, code, errors)
            assert errors[-1].startswith("error: " if code == 2 else "refused: "), overrides
            return
        counts["trained" if trained else "accepted"] += 1
        assert_obeyed(config, overrides)
        if trained:
            assert_saved(config, tmp_path)

    check()
    print(dict(counts))
    for name, count in counts.items():
        record_property(name, count)


def assert_obeyed(config, overrides):
    """Every value that was accepted stands in the config."""
    for override in overrides:
        name, _, text = override.lstrip("+").partition("=")
        if name.startswith("~") or name in GROUPS or name.split("@")[0] in GROUPS:
            continue
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]))["x"]
        used = OmegaConf.select(OmegaConf.create(config), name)
        used = OmegaConf.to_container(used) if OmegaConf.is_config(used) else used
        # A run shorter than the interval logs once; several checkpoints get names of their own.
        if not name.endswith(("log_every_n_steps", "filename")):
            assert used == value or str(used) == text, (override, used)


def assert_saved(config, folder):
    """The config in the folder of the newest run is the one that was used."""
    runs = sorted(folder.glob("logs/*/runs/*/config.yaml"), key=lambda x: x.stat().st_mtime)
    if runs:
        saved = OmegaConf.to_container(OmegaConf.load(runs[-1]))
        assert saved == json.loads(json.dumps(config))
