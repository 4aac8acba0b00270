"""How a command line becomes a config: plugins, checkpoints as configs, errors said on one line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.compatibility import task_of
from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.sweeps.launcher import register_launcher, register_plugin
from attention_zoo.tasks.sweeps.search import TrialsSweeper
from attention_zoo.zoo import unknown_name_message

OVERRIDE = re.compile(r"^(\+{0,2}|~)[\w/@.:$-]+=|^~[\w/@.:-]+$", re.ASCII)
SOURCE_FLAGS = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
VALUED_FLAGS = (
    *SOURCE_FLAGS,
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
)
# Launchers that come with an extra of ours.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
# Groups and options that have no part in using a checkpoint.
OF_TRAINING = (
    "callbacks", "logger", "experiment", "debug", "hparams_search", "lengths", "stride", "match",
    "baseline", "seeds",
)  # fmt: skip


class PluginConfigs(SearchPathPlugin):
    """Adds the `conf` package of every installed plugin of the zoo to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in entry_points(group="attention_zoo"):
            package = f"{plugin.module.split('.')[0]}.conf"
            if find_spec(package) is not None:
                search_path.append(provider=plugin.name, path=f"pkg://{package}")


@dataclass(frozen=True)
class Invocation:
    """A command line, read: what Hydra is to compose, and what it has no part in.

    `implied` is the override that was added to those of the user.
    """

    verb: str
    config_name: str
    overrides: list[str]
    lines: list[str] = field(default_factory=list)
    checkpoint: dict[str, Any] | None = None
    implied: str | None = None


def parse_command(verb: str, arguments: list[str]) -> Invocation:
    """Read a verb's arguments, and make ready what Hydra composes from.

    Verbs that use a checkpoint compose from the config inside it, so that any override of Hydra's
    works on it as it did in training.

    Raises:
        UserError: an argument that is neither an override nor, where the verb takes them, a line.
    """
    overrides, lines = split(arguments)
    register_plugins(verb, source_flags(overrides))
    if lines and verb in ("train", "evaluate"):
        raise UserError(f"{verb} takes overrides of the form name=value, got {lines[0]!r}.")
    if verb == "train":
        overrides = with_seeds(overrides)
        implied = implied_task(overrides)
        return Invocation(
            verb, verb, [*overrides, *([implied] if implied else [])], implied=implied
        )
    named = next((x for x in overrides if x.startswith("ckpt_path=")), None)
    if named is None:
        return Invocation(verb, verb, overrides, lines)

    from attention_zoo.tasks.training.checkpoints import read_checkpoint

    # By Hydra's grammar: a name with blanks or brackets is quoted.
    path = OverridesParser.create().parse_override(named).value()
    checkpoint = read_checkpoint(Path(str(path)))
    store_config(verb, checkpoint["attention_zoo"], overrides)
    return Invocation(verb, f"{verb}_checkpoint", overrides, lines, checkpoint)


def implied_task(overrides: list[str]) -> str | None:
    """The override that chooses the task, where there is none and the data fit no other.

    An experiment chooses its task itself.
    """
    values = dict(x.lstrip("+").split("=", 1) for x in overrides if "=" in x)
    if "data" not in values or values.keys() & {"task", "experiment"}:
        return None
    tasks = {task_of(choice) for choice in values["data"].split(",")}
    if len(tasks) > 1 or tasks <= {None, default_task()}:
        return None
    return f"task={tasks.pop()}"


def with_seeds(overrides: list[str]) -> list[str]:
    """`seeds=3` of a sweep as the seeds to sweep over: `seed=1,2,3`, from `seed` on.

    Raises:
        UserError: no whole number, no one seed to start from, or a search among the jobs.
    """
    values = dict(x.lstrip("+").split("=", 1) for x in overrides if "=" in x)
    count = values.get("seeds", "null")
    sweep = {"-m", "--multirun"} & {*overrides} or values.get("hydra.mode") == "MULTIRUN"
    if count == "null" or not sweep:
        return overrides  # A run that is no sweep refuses them itself.
    if not re.fullmatch(r"[1-9][0-9]*", count):
        raise UserError(f"seeds must be a whole number of at least 1, such as 3, got {count}.")
    first = values.get("hydra.sweeper.params.seed") or values.get("seed") or first_seed(overrides)
    if not first.isdecimal():
        raise UserError(
            f"seeds={count} counts on from one seed, got seed={first}; give either the seeds to "
            "sweep over, such as seed=1,2,3, or their number."
        )
    for group, harmless in (("hparams_search", "null"), ("hydra/sweeper", "basic")):
        if values.get(group, harmless) != harmless:
            raise UserError(
                f"seeds={count} repeats all jobs, and {group}={values[group]} would search for the "
                "best seed. Search without it, and repeat what was found with other seeds."
            )
    seeds = ",".join(str(int(first) + offset) for offset in range(int(count)))
    others = [x for x in overrides if x.lstrip("+").split("=")[0] not in ("seed", "seeds")]
    return [*others, f"seed={seeds}"]


def first_seed(overrides: list[str]) -> str:
    """The seed of jobs that are given none: that of their experiment, or of the primary config.

    Raises:
        UserError: there are several experiments, which may have several.
    """
    chosen = [x for x in overrides if x.partition("=")[0] in ("experiment", "debug")]
    if any("," in x or "(" in x for x in chosen):
        raise UserError(
            f"seeds counts on from one seed, and {' '.join(chosen)} may have several; give the "
            "first one: seed=1."
        )
    places = [x for x in overrides if x.startswith("hydra.searchpath=")]
    # Hydra's --config-dir is one more place.
    for flag, following in pairwise([*overrides, ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            places.append(f"hydra.searchpath=['file://{Path(value or following).absolute()}']")
    try:
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            return str(compose("train", overrides=[*places, *chosen]).seed)
    except HydraException:
        # The composition of the jobs says what is wrong.
        return str(primary().seed)


def default_task() -> str:
    """The task that is trained when none is chosen."""
    return next(group["task"] for group in primary().defaults if "task" in group)


def primary() -> Any:
    """The config that trainings are composed from, before anything is chosen."""
    return OmegaConf.create(files("attention_zoo.conf").joinpath("train.yaml").read_text())


def register_plugins(verb: str, flags: Sequence[str] = ()) -> None:
    """Make Hydra know the configs of the zoo's plugins, our launcher for a verb, our search."""
    Plugins.instance().register(PluginConfigs)
    register_launcher(verb, flags)
    register_plugin(TrialsSweeper, "hydra/sweeper", "trials")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is Hydra's, flags and overrides, and what is text. All behind `--` is text.

    Flags come first, as Hydra's parser does not take any between overrides.
    """
    flags: list[str] = []
    overrides: list[str] = []
    lines: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            lines.extend(rest)
        elif argument in VALUED_FLAGS:
            flags.extend([argument, next(rest, "")])
        elif argument.startswith("-"):
            flags.append(argument)
        elif OVERRIDE.match(argument):
            overrides.append(argument)
        else:
            lines.append(argument)
    return [*flags, *overrides], lines


def source_flags(arguments: list[str]) -> list[str]:
    """The flags that say where configs are, with their values."""
    flags = []
    for argument, following in pairwise([*arguments, ""]):
        if argument in SOURCE_FLAGS:
            flags += [argument, following]
        elif argument.partition("=")[0] in SOURCE_FLAGS:
            flags.append(argument)
    return flags


def store_config(verb: str, whole: dict[str, Any], overrides: list[str]) -> None:
    """Enter a primary config made of a checkpoint's, with the groups it was composed of.

    A group that is chosen anew loses the checkpoint's values, so that the two do not mix.
    """
    choices = whole["config"]["choices"]
    given = {x.lstrip("+").split("=")[0] for x in overrides}
    # attention@encoder_attention is the group attention at the place encoder_attention.
    anew = {group.rpartition("@")[2] for group in choices if group in given}
    config = {
        key: value
        for key, value in whole["config"].items()
        if key not in anew and key not in (*OF_TRAINING, "choices")
    }
    groups = [
        {group: choices[group]}
        # The data last: they may choose a tokenizer.
        for group in sorted(choices, key=lambda group: group == "data")
        if group not in OF_TRAINING and group != "task"
    ]
    if verb == "evaluate":
        config["paths"] = {**config["paths"], "run": "${output}"}
    config["defaults"] = [{"hydra": "default"}, verb, *groups, "_self_"]
    ConfigStore.instance().store(name=f"{verb}_checkpoint", node=config)


def resolve_output_dir(config: DictConfig) -> None:
    """Give an evaluation that leaves something behind a folder beside its checkpoint's run."""
    if "output" not in config or not config.ckpt_path or config.output is not None:
        return
    if config.lengths or config.logger:
        run = RunFolder.of_checkpoint(str(config.ckpt_path))
        config.output = str(run.evaluations / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")


def group_choices() -> dict[str, str | None]:
    """Which config was chosen of each group, in the job that is running."""
    choices = HydraConfig.get().runtime.choices
    return {str(group): choices[group] for group in choices if not str(group).startswith("hydra")}


def explained(error: Exception, call: Invocation) -> Exception:
    """What the user can mend in an error of composition as a `UserError`, others as they are."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and name in EXTRAS:
            return UserError(
                f"{group}={name} needs a package that is not installed; "
                f"pip install 'attention-zoo[{EXTRAS[name]}]'."
            )
        return UserError(unknown_name_message(group, name, list(error.options)))
    stray = re.search(r"Could not override '(?:([\w.]+)\.)?([\w@]+)'", str(error))
    if isinstance(error, ConfigCompositionException) and stray:
        return UserError(stray_option(stray[1], stray[2], call))
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return UserError(f"{error.full_key} has no default; give it: {error.full_key}=VALUE")
    if isinstance(error, HydraException | OmegaConfBaseException) or of_submitit(error):
        return UserError(" ".join(str(error).split()))
    return error


def of_submitit(error: Exception) -> bool:
    """Whether it says what SLURM has not done, or that there is none (by a plain RuntimeError)."""
    return type(error).__module__.startswith("submitit") or "Could not detect" in str(error)


def stray_option(node: str | None, option: str, call: Invocation) -> str:
    """The sentence for an override of what is not there, with what could have been overridden."""
    given = option if node is None else f"{node}.{option}"
    others = [
        x for x in call.overrides if OVERRIDE.match(x) and x.lstrip("+~").split("=")[0] != given
    ]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        composed = compose(call.config_name, overrides=[x for x in others if "hydra." not in x])
    if node is None:
        return unknown_name_message("option", given, [str(key) for key in composed])
    chosen = OmegaConf.select(composed, node)
    if chosen is None and node in composed:
        choice = f"attention@{node}" if node.endswith("_attention") else node
        return f"{node} has no options until it is chosen: {choice}=NAME {given}=VALUE"
    keys = [key for key in chosen if not str(key).startswith("_")] if chosen is not None else []
    options = [f"{node}.{key}" for key in keys] or [str(key) for key in composed]
    return unknown_name_message("option", given, options)
