"""Refuse options that nothing takes, and values of the wrong type, before anything is built."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from math import isnan
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.conf_files import COLLECTIONS, REQUIRED, list_choices, show
from attention_zoo.tasks.configuration.overrides import train_yaml
from attention_zoo.tasks.configuration.resolved_config import flatten
from attention_zoo.tasks.configuration.signatures import (
    MAX_INTEGER,
    describe,
    find_target,
    matches,
    parameters_of,
)
from attention_zoo.tasks.configuration.stacks import PATTERNS, is_mixed, kinds_of
from attention_zoo.tasks.task_spec import TASKS
from attention_zoo.zoo import SYNONYMS

ROLES = [node for spec in TASKS.values() for node in spec.attention_roles]
# What the program hands to what a group builds, so that a config cannot set it.
PROVIDED: dict[str, Collection[str]] = {
    "task": ("model", "tokenizer", "optimizer", "schedule", "decoding", "config"),
    "model": ("vocabulary_size", "pad_id", "position", *ROLES),
    "attention": ("dim", "role", "layer"),
    "position": ("dim", "heads", "head_dim", "role", "layer"),
    "tokenizer": ("lines",),
    "optimizer": ("model", "params"),
    "schedule": ("optimizer", "total_steps"),
    "logger.tensorboard": ("log_dir",),
    "logger.wandb": ("dir", "resume", "reinit", "settings"),
    "data.sampling": ("tokens", "rows", "context_length", "seed", "rank", "world_size"),
    "trainer": (
        "logger",
        "callbacks",
        "default_root_dir",
        "enable_progress_bar",
        "enable_checkpointing",
    ),
}
# Of few choices, which can be named together.
SMALL_GROUPS = (*COLLECTIONS, "decoding", "optimizer", "schedule", "tokenizer")
# The types of options that no signature has.
TYPES: dict[str, Any] = {
    "seed": int,
    "ckpt_path": str | None,
    "ckpt_override": list[str],
    "overwrite": bool,
    "init_from": str | None,
    "strict": bool,
    "freeze": list[str],
    "compile": bool | dict[str, Any],
    "jobs": int,
    "fail_fast": bool,
    "seeds": int | None,
    "match": str | None,
    "test": bool,
    "lengths": list[int],
    "stride": int | None,
    "split": str,
    "input": str | None,
    "output": str | None,
    "paths.logs": str,
    "paths.run": str | None,  # an evaluation need not have one
    "paths.cache": str,
    "baseline.attention": str | None,
    "baseline.position": str | None,
    "model.heads": int,
    **{f"stack.{name}": str | list[str] | None for name in PATTERNS},
    "task.name": str,
}


def check_groups(config: Mapping[str, Any]) -> None:
    """Refuse a config in which a group that every run needs was not chosen."""
    for name in REQUIRED:
        node = config.get(name)
        if name == "attention" and node is None and is_mixed(config):
            continue  # Each kind of layers has its own.
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(
                f"{name} cannot be left out, got {name}={show(node)}. "
                f"Choices: {', '.join(list_choices(name))}."
            )
    if config["task"].get("name") not in [*TASKS]:  # a list has no hash
        raise UserError(f"task.name must be one of {', '.join(TASKS)}, as task=NAME sets it.")
    for name in ("position", *ROLES):
        node = config.get(name)
        if isinstance(node, Mapping) and "name" not in node:
            choice = f"attention@{name}" if name.endswith("_attention") else name
            raise UserError(f"{name} has no options until it is chosen: {choice}=NAME.")
    for name in COLLECTIONS:
        for key, node in (config.get(name) or {}).items():
            if node is not None and not (isinstance(node, Mapping) and "_target_" in node):
                raise UserError(
                    f"{name}.{key} needs a _target_ to build, got {show(node)}; or null for none."
                )


def check_options(config: Mapping[str, Any], legal: Collection[str]) -> None:
    """Refuse what nothing would read in a composed config, and values of the wrong type.

    `legal` are the names of groups and options at the top. A node with a `_target_` has the options
    of what that builds; the elements of other containers are data.
    """
    if (path := next(find_nan(config), None)) is not None:
        raise UserError(f"{path} must be a number, got NaN.")
    for key, node in config.items():
        if key not in legal:
            known = {x: node for x, node in config.items() if x in legal}
            raise UserError(unknown_option(key, known))
        if key in COLLECTIONS:
            for name, inner in (node or {}).items():
                if inner is not None:
                    check_node(inner, f"{key}.{name}", config)
        elif isinstance(node, Mapping) and "_target_" in node:
            check_node(node, key, config)
        elif key == "stack":
            check_stack(node, config)
        elif key in ("paths", "baseline"):
            check_value(node, dict[str, Any], key)
            for name, value in node.items():
                if f"{key}.{name}" not in TYPES:
                    raise UserError(unknown_option(f"{key}.{name}", config))
                check_value(value, TYPES[f"{key}.{name}"], f"{key}.{name}")
                if value == "":
                    raise UserError(f"{key}.{name} must not be empty.")
        elif key in TYPES:
            check_value(node, TYPES[key], key)


def check_stack(stack: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Check the patterns of a stack, and the attention and the encoding of each of its kinds."""
    check_value(stack, dict[str, Any] | None, "stack")
    for key, value in (stack or {}).items():
        path = f"stack.{key}"
        if path in TYPES:
            check_value(value, TYPES[path], path)
        elif key not in kinds_of(stack):
            raise UserError(unknown_option(path, config))
        elif value is not None:
            position = value.get("position") if isinstance(value, Mapping) else None
            if not isinstance(value, Mapping) or "_target_" not in value:
                choice = f"attention@{path}"
                raise UserError(f"{path} has no options until it is chosen: {choice}=NAME.")
            check_node({k: x for k, x in value.items() if k != "position"}, path, config)
            if position is not None:
                check_node(position, f"{path}.position", config)


def check_node(node: Mapping[str, Any], path: str, config: Mapping[str, Any]) -> None:
    """Check the options of a node with a `_target_`, and of the nodes in it."""
    parameters, takes_others = node_parameters(node, path)
    provided = provided_options(path)
    for key, value in node.items():
        option = f"{path}.{key}"
        if key.startswith("_") and key.endswith("_"):
            continue
        if key in provided and key in parameters:
            raise UserError(f"{option} is decided by the program; leave it out.")
        if key not in parameters and not takes_others and option not in TYPES:
            raise UserError(unknown_option(option, config))
        if option in TYPES:
            check_value(value, TYPES[option], option)
        elif key in parameters:
            check_value(value, parameters[key].annotation, option)
        for inner, inner_path in find_nodes(value, option):
            check_node(inner, inner_path, config)
    missing = [
        key
        for key, x in parameters.items()
        if x.default is x.empty and key not in node and key not in provided
    ]
    if missing and not node.get("_partial_", False):
        raise UserError(f"{path} needs {path}.{missing[0]}: {node['_target_']} has no default.")


def check_value(value: Any, annotation: Any, path: str) -> None:
    """Refuse a value that does not have the annotated type."""
    if not matches(value, annotation):
        described = describe(annotation)
        hint = ""
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(x, int) and abs(x) > MAX_INTEGER for x in numbers):
            hint = f"; the largest is {MAX_INTEGER}"
        elif described.startswith("a list"):
            hint = f"; a list is written {path}=[a,b]"
        raise UserError(f"{path} must be {described}, got {show(value)}{hint}.")


def node_parameters(
    node: Mapping[str, Any], path: str
) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters of what a node builds, and whether it takes any other."""
    if not isinstance(node["_target_"], str):
        raise UserError(f"{path}._target_ must be text, got {show(node['_target_'])}.")
    return parameters_of(find_target(node["_target_"], path), node.get("name"))


def provided_options(path: str) -> Collection[str]:
    """Return the parameters that the program itself gives to what the node at a path builds."""
    if path.startswith("stack."):
        path = "position" if path.endswith(".position") else "attention"
    return PROVIDED.get("attention" if path in ROLES else path, ())


def find_nan(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all values that are not a number: no option takes NaN."""
    if isinstance(value, float) and isnan(value):
        yield path
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from find_nan(item, f"{path}.{key}" if path else str(key))


def find_nodes(value: Any, path: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the outermost nodes with a `_target_` in a value, with their paths."""
    if isinstance(value, Mapping) and "_target_" in value:
        yield value, path
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from find_nodes(inner, f"{path}.{key}")


def existing_options(config: Mapping[str, Any]) -> list[str]:
    """Return the full names of all options that a config has or could have."""
    names: dict[str, None] = {}

    def add(node: Any, path: str) -> None:
        if not isinstance(node, Mapping):
            return
        parameters: dict[str, inspect.Parameter] = {}
        takes_others = True
        if "_target_" in node:
            parameters, takes_others = node_parameters(node, path)
        own = [x for x in parameters if x not in provided_options(path)]
        own += [
            x
            for x in node
            if x not in own and not x.startswith("_") and (takes_others or f"{path}.{x}" in TYPES)
        ]
        for key in own:
            names[f"{path}.{key}"] = None
            add(node.get(key), f"{path}.{key}")

    for key, node in config.items():
        names[key] = None
        add(node, key)
    return list(names)


def options_of_other_choices() -> list[str]:
    """Return the full names of options that the files of groups list."""
    names: dict[str, None] = {}
    for group in (*COLLECTIONS, *REQUIRED):
        for choice in list_choices(group):
            names.update(dict.fromkeys(options_in_file(group, choice)))
    return list(names)


def options_in_file(group: str, choice: str) -> list[str]:
    """Return the full names of the options that the file of a choice lists for its group."""
    text = (files("attention_zoo.conf") / group / f"{choice}.yaml").read_text()
    content: Any = OmegaConf.to_container(OmegaConf.create(text))
    return [] if "# @package" in text else [f"{group}.{x}" for x, _ in flatten(content)]


def unknown_option(name: str, config: Mapping[str, Any]) -> str:
    """Return the sentence for an unknown option: the nearest names of the whole tree, then some.

    An option that ends in the same word comes first, then those that end in nearly the same, then
    those of other choices, and those that end in a similar word.
    """
    if choice := needed_choice(name):
        return f"There is no option {name!r} yet: choose {choice} too."
    options = [x for x in existing_options(config) if x != name]
    node = name.rpartition(".")[0]
    others = [x for x in options_of_other_choices() if x != name]
    near = (
        same_word(name, options)
        or similar_words(name, options, cutoff=0.9)
        or same_word(name, others)
        or similar_words(name, options, cutoff=0.6)
    )
    near = sorted(near, key=lambda x: (x.rpartition(".")[0] != node, x.count(".")))
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    siblings = [x for x in options if x.rpartition(".")[0] == node]
    siblings = siblings or [x for x in options if "." not in x]
    return f"There is no option {name!r}.{hint} Choices: {', '.join(siblings)}."


def needed_choice(name: str) -> str | None:
    """Return the choices of a small group whose files list an option; None if none does."""
    group = name.partition(".")[0]
    choices = list_choices(group) if group in SMALL_GROUPS else []
    found = [f"{group}={x}" for x in choices if name in options_in_file(group, x)]
    return " or ".join(found) or None


def same_word(name: str, options: Sequence[str]) -> list[str]:
    """Return the options whose last word is that of a name, or its synonym."""
    word = name.rpartition(".")[2]
    words = (word, SYNONYMS.get(word, word))
    return [x for x in options if x.rpartition(".")[2] in words]


def similar_words(name: str, options: Sequence[str], *, cutoff: float) -> list[str]:
    """Return the options whose last word is similar to that of a name."""
    words = {x.rpartition(".")[2]: None for x in options}
    near = get_close_matches(name.rpartition(".")[2], words, n=3, cutoff=cutoff)
    return [x for word in near for x in options if x.rpartition(".")[2] == word]


def check_own_options(config: Mapping[str, Any], command: str) -> None:
    """Refuse a config without an option that the command's file lists."""
    for name in own_options(command):
        if name not in (*config, "defaults", "hydra"):
            raise UserError(f"{name} cannot be left out: remove ~{name}, or give {name}=VALUE.")


def own_options(command: str) -> list[str]:
    """Return the names at the top of a command's file."""
    file = files("attention_zoo.conf").joinpath(f"{command}.yaml")
    return [str(name) for name in OmegaConf.create(file.read_text())]


def legal_names(command: str) -> set[str]:
    """Return the names of the groups and options at the top of a command's config."""
    groups = [x.name for x in files("attention_zoo.conf").iterdir() if x.is_dir()]
    return {*own_options(command), *map(str, train_yaml()), *groups, *ROLES, "choices"}
