"""Read the arguments of a command: Hydra's flags, overrides `name=value`, and lines of text."""

import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.conf_files import data_task

OVERRIDE = re.compile(r"^(\+{0,2}|~)[\w/@.:$-]+=|^~[\w/@.:-]+$", re.ASCII)
# Flags of Hydra that say where configs are.
SOURCE_FLAGS = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
VALUE_FLAGS = {*SOURCE_FLAGS, "--cfg", "-c", "--package", "-p", "--info", "-i"}
VALUE_FLAGS |= {"--experimental-rerun"}
SWITCHES = {"--help", "-h", "--hydra-help", "--multirun", "-m", "--run", "-r", "--resolve"}
SWITCHES |= {"--shell-completion", "-sc"}

# What a checkpoint is used without, and its config holds all the same. Options and groups, of which
# "data=" means the choice alone.
UNUSED = (
    *("optimizer", "schedule", "tokenizer", "compile", "jobs", "fail_fast", "test"),
    *("model.dropout", "attention.dropout"),
)
UNUSED_IN_EVALUATION = (
    *UNUSED,
    *("task.label_smoothing", "task.non_finite"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.min_steps"),
    *("trainer.min_epochs", "trainer.val_check_interval", "trainer.check_val_every_n_epoch"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.overfit_batches"),
    *("trainer.gradient_clip_algorithm", "trainer.limit_train_batches"),
    *("trainer.num_sanity_val_steps", "trainer.reload_dataloaders_every_n_epochs"),
)
UNUSED_WITH_TEXT = (
    *UNUSED,
    *("trainer", "task", "seed", "data=", "data.source", "data.seed", "data.num_workers"),
    *("data.root", "data.tokens_per_batch", "data.batch_size", "data.length_jitter"),
    *("data.probes", "data.cache_dir", "paths.cache", "paths.logs"),
)


# A diverged trial is no failure, trainings have a length in steps, and folders are those of phases.
DECIDED_BY_COMPARE = (
    *("fail_fast", "overwrite", "ckpt_override"),
    *("trainer.max_epochs", "trainer.val_check_interval", "trainer.check_val_every_n_epoch"),
    *("hydra.mode", "hydra.run.dir", "hydra.sweep.subdir"),
)
# What changes no layer of a model.
UNUSED_IN_SHOW = (
    *("optimizer", "schedule", "decoding", "trainer", "callbacks", "logger", "paths", "hydra"),
    *("compile", "jobs", "fail_fast", "test", "seed", "seeds", "lengths", "stride", "match"),
    *("baseline", "hparams_search", "ckpt_path", "ckpt_override", "overwrite"),
    *("strict", "freeze"),
)

# What decides which model is measured, on which device. The rest is about data and trainings.
USED_IN_BENCHMARK = (
    *("attention", "encoder_attention", "decoder_attention", "cross_attention"),
    *("position", "stack", "model", "tokenizer", "task", "experiment", "seed", "compile"),
    *("trainer.accelerator", "trainer.precision", "paths.logs"),
    *("hydra.sweep.dir", "hydra.searchpath", "hydra.verbose"),
)


def split_arguments(command: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate what is for Hydra, flags and overrides, from lines of text.

    All that follows `--` is text. Flags come first in the result, as Hydra's parser takes none
    between overrides.
    """
    flags: list[str] = []
    overrides: list[str] = []
    lines: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            lines.extend(remaining)
        elif argument in VALUE_FLAGS:
            flags.extend([argument, next(remaining, "")])
        elif argument in SWITCHES or (equals and flag in VALUE_FLAGS):
            flags.append(argument)
        elif argument.startswith("-"):
            option = f"{flag.lstrip('-')}={value or 'VALUE'}"
            raise UserError(
                f"{command} takes options as name=value, such as {option}, got {argument!r}. "
                "Lines that begin with a dash come after --."
            )
        elif OVERRIDE.match(argument):
            overrides.append(argument)
        else:
            lines.append(argument)
    return [*flags, *overrides], lines


def source_flags(arguments: Sequence[str]) -> list[str]:
    """Return the flags that say where configs are, with their values."""
    flags = []
    for argument, following in pairwise([*arguments, ""]):
        if argument in SOURCE_FLAGS:
            flags += [argument, following]
        elif argument.partition("=")[0] in SOURCE_FLAGS:
            flags.append(argument)
    return flags


def override_values(overrides: Sequence[str]) -> dict[str, str]:
    """Return the value of each override, by name."""
    return dict(x.lstrip("+").split("=", 1) for x in overrides if "=" in x)


def refuse_unused(command: str, overrides: Sequence[str]) -> None:
    """Refuse options that a command which does not train does not read."""
    unused = {"evaluate": UNUSED_IN_EVALUATION, "show": UNUSED_IN_SHOW}.get(
        command, UNUSED_WITH_TEXT
    )
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if any(x in (name, f"{name}=") or name.startswith(f"{x}.") for x in unused):
            is_drawn = (command, name) == ("generate", "seed")
            remedy = "give decoding.seed=NUMBER" if is_drawn else "leave it out"
            raise UserError(f"{override} would have no effect on {command}; {remedy}.")


def is_used_in_benchmark(override: str) -> bool:
    """Return whether an option of a training has an effect on what `benchmark` measures."""
    name = override.lstrip("+~").partition("=")[0].partition("@")[0]
    if name == "task.non_finite":
        return False
    return name == "trainer" or any(f"{name}.".startswith(f"{x}.") for x in USED_IN_BENCHMARK)


def refuse_unused_in_benchmark(overrides: Sequence[str], own_options: Sequence[str]) -> None:
    """Refuse options that have no effect on what `benchmark` measures; its own ones have."""
    for override in (x for x in overrides if OVERRIDE.match(x)):
        name = override.lstrip("+~").partition("=")[0]
        if name not in own_options and not is_used_in_benchmark(override):
            raise UserError(
                f"{override} would have no effect on benchmark, which measures forward and "
                "backward on random tokens; leave it out."
            )


def refuse_options_of_sweeps(overrides: Sequence[str]) -> None:
    """Refuse options that would take the place of what `compare` does itself."""
    values = override_values(overrides)
    for name in ("hparams_search", "hydra/sweeper", "ckpt_path", "init_from"):
        if values.get(name, "null") != "null":
            raise UserError(
                "compare searches by itself, and every training of it is new, got "
                f"{name}={values[name]}; leave it out."
            )
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name in DECIDED_BY_COMPARE or name.startswith("hydra.sweeper."):
            raise UserError(f"compare decides {name} itself, got {override}; leave it out.")
    if values.get("budget", "null") != "null" and "trainer.max_steps" in values:
        raise UserError(
            "the budget decides trainer.max_steps, got "
            f"budget={values['budget']} and trainer.max_steps={values['trainer.max_steps']}; "
            "give one of them."
        )


def infer_task(overrides: Sequence[str]) -> str | None:
    """Return the override for the task that the chosen data need; None if the task stays."""
    values = override_values(overrides)
    # An experiment chooses its task itself.
    if "data" not in values or values.keys() & {"task", "experiment"}:
        return None
    tasks = {data_task(choice) for choice in values["data"].split(",")}
    default = next(group["task"] for group in train_yaml().defaults if "task" in group)
    if len(tasks) > 1 or tasks <= {None, default}:
        return None
    return f"task={tasks.pop()}"


def expand_seeds(overrides: list[str]) -> list[str]:
    """Replace `seeds=3` of a sweep by seeds to sweep over: `seed=1,2,3`, counted from `seed`."""
    values = override_values(overrides)
    count = values.get("seeds", "null")
    is_sweep = {"-m", "--multirun"} & {*overrides} or values.get("hydra.mode") == "MULTIRUN"
    if count == "null" or not is_sweep:
        return overrides  # A single run refuses `seeds` itself.
    if not re.fullmatch(r"[1-9][0-9]*", count):
        raise UserError(f"seeds must be a whole number of at least 1, such as 3, got {count}.")
    first = values.get("hydra.sweeper.params.seed") or values.get("seed") or default_seed(overrides)
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


def default_seed(overrides: Sequence[str]) -> str:
    """Return the seed of jobs without an override for it: their experiment's, or train.yaml's."""
    chosen = [x for x in overrides if x.partition("=")[0] in ("experiment", "debug")]
    if any("," in x or "(" in x for x in chosen):
        raise UserError(
            f"seeds counts on from one seed, and {' '.join(chosen)} may have several; give the "
            "first one: seed=1."
        )
    try:
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            return str(compose("train", overrides=[*search_path(overrides), *chosen]).seed)
    except HydraException:
        # The composition of the jobs says what is wrong.
        return str(train_yaml().seed)


def search_path(overrides: Sequence[str]) -> list[str]:
    """Return overrides that make `compose` look for configs where the command line does."""
    folders = [x for x in overrides if x.startswith("hydra.searchpath=")]
    for flag, following in pairwise([*overrides, ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):  # a folder that is searched as well
            folder = Path(value or following).absolute()
            folders.append(f"hydra.searchpath=['file://{folder}']")
    return folders


def train_yaml() -> Any:
    """Return the config that trainings are composed from, before anything is chosen."""
    return OmegaConf.create(files("attention_zoo.conf").joinpath("train.yaml").read_text())
