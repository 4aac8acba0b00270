"""Turn a command line into a config that Hydra composes, from conf or from a checkpoint."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.benchmark.sweeper import BenchmarkSweeper
from attention_zoo.tasks.commands.help import HELP_FLAGS
from attention_zoo.tasks.comparison.sweeper import ComparisonSweeper
from attention_zoo.tasks.configuration.group_overrides import (
    check_group_overrides,
    complete_overrides,
    quote_equals_signs,
    refuse_replaced_options,
)
from attention_zoo.tasks.configuration.override_grammar import check_grammar, last_values
from attention_zoo.tasks.configuration.overrides import (
    expand_seeds,
    infer_task,
    override_values,
    refuse_options_of_sweeps,
    refuse_unused_in_benchmark,
    source_flags,
    split_arguments,
    train_yaml,
)
from attention_zoo.tasks.configuration.renamed_options import refuse_renamed_options
from attention_zoo.tasks.sweeps.grid import GridSweeper
from attention_zoo.tasks.sweeps.launcher import register_launcher, register_plugin
from attention_zoo.tasks.sweeps.search import TrialsSweeper

# The config and the sweeper of commands that take several values of an option, by command.
SWEEPERS = {"compare": "comparison", "benchmark": "benchmarking"}
# Groups and options of a training that its checkpoint is used without.
TRAINING_GROUPS = ("callbacks", "debug", "experiment", "hparams_search", "logger")
TRAINING_OPTIONS = (
    *(*TRAINING_GROUPS, "lengths", "stride", "match", "baseline", "seeds"),
    *("init_from", "strict", "freeze", "ckpt_override", "overwrite"),
)
# What a fine-tuning takes from its checkpoint, besides the attention of single roles.
MODEL_GROUPS = ("task", "model", "attention", "position", "stack", "tokenizer")


class PluginConfigs(SearchPathPlugin):
    """Adds the `conf` package of every installed plugin of the zoo to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in entry_points(group="attention_zoo"):
            package = f"{plugin.module.split('.')[0]}.conf"
            # To find it, the package is imported; the registries name the plugin that cannot be.
            with suppress(Exception):
                if find_spec(package) is not None:
                    search_path.append(provider=plugin.name, path=f"pkg://{package}")


@dataclass(frozen=True)
class Invocation:
    """A parsed command line."""

    command: str
    config_name: str  # of the config that Hydra composes from
    overrides: list[str]  # and Hydra's flags
    lines: list[str] = field(default_factory=list)  # the text that the command works on
    checkpoint: dict[str, Any] | None = None  # the one that `ckpt_path` names
    inferred_task: str | None = None  # the override for the task that the data need

    def require_checkpoint(self) -> dict[str, Any]:
        """Return the checkpoint, or refuse that none was named."""
        if self.checkpoint is None:
            example = "ckpt_path=logs/…/checkpoints/best.ckpt"
            raise UserError(f"{self.command} needs a checkpoint: {example}")
        return self.checkpoint


def parse_command(command: str, arguments: Sequence[str]) -> Invocation:
    """Parse the arguments of a command, and prepare what Hydra composes from.

    Commands that use a checkpoint compose from the config inside it, so that Hydra's overrides
    change it as they changed the training.
    """
    if command in SWEEPERS and (asked := [x for x in arguments if x in HELP_FLAGS]):
        arguments = asked  # The help is that of one run.
    elif command == "compare":
        arguments = ["dry_run=true" if x == "--dry-run" else x for x in arguments]
    overrides, lines = split_arguments(command, arguments)
    refuse_renamed_options(overrides)
    overrides = quote_equals_signs(last_values(overrides))
    check_grammar(overrides)
    refuse_replaced_options(overrides)
    overrides = check_group_overrides(overrides)
    register_plugins(command, source_flags(overrides))
    if lines and command in ("train", "compare", "evaluate", "benchmark"):
        raise UserError(f"{command} takes options of the form name=value, got {lines[0]!r}.")
    if command == "compare":
        refuse_options_of_sweeps(overrides)
        task = infer_task(overrides)
        overrides = overrides if task is None else [*overrides, task]
        return sweeping_invocation(command, overrides, inferred_task=task)
    if command == "benchmark":
        # query= is of the shell's completion.
        refuse_unused_in_benchmark(overrides, [*command_yaml(command), "query"])
        chosen = override_values(overrides).keys()
        if not chosen & {"task", "experiment"}:
            overrides = [*overrides, "task=language_modeling"]
        return sweeping_invocation(command, overrides)
    if command == "train":
        overrides = expand_seeds(overrides)
        checkpoint = checkpoint_of_option("init_from", overrides)
        if checkpoint is not None:
            training_config = checkpoint["attention_zoo"]["config"]
            config_name, choices = store_fine_tuning_config(training_config, overrides)
            overrides = complete_overrides(config_name, [*overrides, *choices])
            return Invocation(command, config_name, overrides, checkpoint=checkpoint)
        task = infer_task(overrides)
        overrides = overrides if task is None else [*overrides, task]
        overrides = complete_overrides(command, overrides)
        return Invocation(command, command, overrides, inferred_task=task)
    checkpoint = checkpoint_of_option("ckpt_path", overrides)
    if checkpoint is None:
        return Invocation(command, command, overrides, lines)
    config_name = store_checkpoint_config(command, checkpoint["attention_zoo"]["config"], overrides)
    overrides = complete_overrides(config_name, overrides)
    return Invocation(command, config_name, overrides, lines, checkpoint)


def checkpoint_of_option(option: str, overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return the checkpoint that an option names; None if it names none, or several to sweep."""
    override = next((x for x in overrides if x.startswith(f"{option}=")), None)
    if override is None:
        return None
    # By Hydra's grammar, as a name with blanks or brackets is quoted.
    parsed = OverridesParser.create().parse_override(override)
    if parsed.is_sweep_override() or parsed.value() is None:
        return None

    from attention_zoo.tasks.training.checkpoints import read_checkpoint

    path = parsed.value()
    if not isinstance(path, str) or not path:
        raise UserError(f"{option} must name a file, got {override}.")
    return read_checkpoint(Path(path))


def register_plugins(command: str, flags: Sequence[str] = ()) -> None:
    """Register with Hydra the configs of the zoo's plugins, our launcher, and our sweepers."""
    Plugins.instance().register(PluginConfigs)
    register_launcher("train" if command in SWEEPERS else command, flags)
    register_plugin(GridSweeper, "hydra/sweeper", "basic", max_batch_size=None, params=None)
    register_plugin(TrialsSweeper, "hydra/sweeper", "trials")
    for name, sweeper in (("compare", ComparisonSweeper), ("benchmark", BenchmarkSweeper)):
        options = {"own_options": [*command_yaml(name)], "params": None}
        register_plugin(sweeper, "hydra/sweeper", SWEEPERS[name], **options)


def command_yaml(command: str) -> Any:
    """Return what a command adds to train.yaml."""
    return OmegaConf.create(files("attention_zoo.conf").joinpath(f"{command}.yaml").read_text())


def sweeping_invocation(
    command: str, overrides: Sequence[str], inferred_task: str | None = None
) -> Invocation:
    """Return the invocation of a command that takes several values of an option without `-m`."""
    config_name = SWEEPERS[command]
    # Hydra takes overrides of its own groups from the primary config alone.
    primary: Any = OmegaConf.to_container(train_yaml(), resolve=False)
    hydra = primary["defaults"].index({"hydra": "default"})
    primary["defaults"][hydra] = {"hydra": config_name}
    primary["defaults"].append({"override hydra/sweeper": config_name})
    primary |= OmegaConf.to_container(command_yaml(command), resolve=False)
    ConfigStore.instance().store(name=config_name, node=primary)
    overrides = complete_overrides(config_name, overrides)
    # Hydra shows a config, or completes words, without sweeping over it.
    flags = {"--cfg", "--info", "-c", "-i", "--shell-completion", "-sc"}
    is_shown = flags & {x.partition("=")[0] for x in overrides}
    mode = [] if is_shown or {"-m", "--multirun"} & {*overrides} else ["-m"]
    return Invocation(command, config_name, [*mode, *overrides], inferred_task=inferred_task)


def store_checkpoint_config(
    command: str, training_config: dict[str, Any], overrides: Sequence[str]
) -> str:
    """Store a primary config made of a checkpoint's config and its groups; return its name.

    A group that is chosen anew loses the values of the checkpoint, so that the two do not mix.
    """
    choices = training_config["choices"]
    overridden = {x.lstrip("+").split("=")[0] for x in overrides}
    # attention@encoder_attention chooses a file of the group attention for encoder_attention.
    replaced = {group.rpartition("@")[2] for group in choices if group in overridden}
    left_out = {*replaced, *TRAINING_OPTIONS, "choices"}
    config = {key: value for key, value in training_config.items() if key not in left_out}
    # The kinds of a stack are groups that its file chooses; another stack has others.
    kinds = {} if "stack" in replaced else {x: choices[x] for x in choices if "@stack." in x}
    if "stack" in config:
        config["stack"] = without_kinds(config["stack"], replaced)
    # The data come last, as they may choose a tokenizer.
    names = sorted(choices, key=lambda group: group == "data")
    names = [x for x in names if x not in (*TRAINING_OPTIONS, "task") and "@stack." not in x]
    groups = [{x: choices[x]} for x in names]
    groups += [{f"override {group}": choice} for group, choice in kinds.items()]
    if command == "evaluate":
        config["paths"] = {**config["paths"], "run": "${output}"}
    config["defaults"] = [{"hydra": "default"}, command, *groups, "_self_"]
    name = f"{command}_checkpoint"
    ConfigStore.instance().store(name=name, node=config)
    return name


def without_kinds(stack: dict[str, Any], replaced: Collection[str]) -> dict[str, Any]:
    """Return a stack without what other choices replace: a kind, or the encoding of one."""
    return {
        key: {x: y for x, y in kind.items() if f"stack.{key}.{x}" not in replaced}
        if isinstance(kind, dict)
        else kind
        for key, kind in stack.items()
        if f"stack.{key}" not in replaced
    }


def store_fine_tuning_config(
    training_config: dict[str, Any], overrides: Sequence[str]
) -> tuple[str, list[str]]:
    """Store train.yaml with a checkpoint's model; return its name, and overrides of its choices.

    A group for which the command line chooses another file loses the values of the checkpoint.
    """
    chosen = override_values(overrides)
    choices = {
        group: choice
        for group, choice in training_config["choices"].items()
        if choice is not None and (group in MODEL_GROUPS or "@" in group)
    }
    for group in ("task", "tokenizer"):
        if (choice := choices.get(group)) != chosen.get(group, choice):
            raise UserError(
                f"init_from brings the {group} of its weights, {choice}, got "
                f"{group}={chosen[group]}; leave {group} out."
            )
    taken = [group for group in choices if chosen.get(group, choices[group]) == choices[group]]
    nodes = [x for group in taken if "." not in (x := group.rpartition("@")[2])]
    model = dict(training_config)
    if "stack" in nodes:
        replaced = [x.rpartition("@")[2] for x in choices if x not in taken]
        model["stack"] = without_kinds(model["stack"], replaced)
    values = "fine_tuning_values"
    ConfigStore.instance().store(
        name=values, node={node: model[node] for node in nodes}, package="_global_"
    )
    primary: Any = OmegaConf.to_container(train_yaml(), resolve=False)
    primary["defaults"].insert(-1, values)  # Hydra wants the override of its launcher last.
    ConfigStore.instance().store(name="fine_tuning", node=primary)
    return "fine_tuning", [f"{group}={choices[group]}" for group in taken if group not in chosen]
