"""Read off signatures which options a `_target_` takes, and whether a value has their types."""

import inspect
import pkgutil
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from os import PathLike
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from attention_zoo.errors import UserError
from attention_zoo.factory import create_attention, create_position, options_of
from attention_zoo.models.blocks import BlockOptions
from attention_zoo.zoo import ATTENTION, POSITION

# The classes that a parameter's `**options` are handed on to, where these are no base classes.
DELEGATES = {"block_options": BlockOptions}
# The functions that a library's or our `**options` are handed on to.
EXTERNAL_DELEGATES = {
    "lightning.pytorch.loggers.tensorboard.TensorBoardLogger": (
        "torch.utils.tensorboard.SummaryWriter"
    ),
    "lightning.pytorch.loggers.wandb.WandbLogger": "wandb.init",
    "attention_zoo.tasks.training.loggers.wandb_runs.create_wandb_logger": "wandb.init",
}
# The types that a library does not annotate.
EXTERNAL_TYPES: dict[str, dict[str, Any]] = {
    "torch.utils.tensorboard.SummaryWriter": {
        "comment": str,
        "purge_step": int | None,
        "max_queue": int,
        "flush_secs": int,
        "filename_suffix": str,
    },
}
EXPECTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "words"}
MAX_INTEGER = 2**63 - 1  # the largest that torch and other compiled libraries hold
BUILT = "a mapping with a _target_"  # which builds an object of any other type


def find_target(target: str, path: str) -> Callable[..., Any]:
    """Return what a `_target_` names, or raise UserError with the reason why there is none."""
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # Importing a user's module may raise anything.
        raise UserError(
            f"{path}._target_={target} cannot be imported: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not callable(found):
        raise UserError(f"{path}._target_={target} must name a class or a function.")
    return found


def parameters_of(
    function: Callable[..., Any], name: str | None = None
) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters that can be given by name, and whether any other name is taken too.

    Parameters that `**options` hands on to base classes are among them, and their annotations are
    resolved. `name` is that of an entry, where `function` creates entries of the zoo.
    """
    own, takes_others = _own_parameters(function)
    if function in (create_attention, create_position) and isinstance(name, str):
        entry = (ATTENTION if function is create_attention else POSITION)[name]
        typed, _ = _own_parameters(entry)
        return own | {key: typed.get(key, x) for key, x in options_of(entry).items()}, False
    return own, takes_others


def _own_parameters(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    functions = [function]
    if isinstance(function, type):
        functions = [vars(x)["__init__"] for x in function.__mro__ if "__init__" in vars(x)]
    parameters: dict[str, inspect.Parameter] = {}
    for number, current in enumerate(functions):
        remaining = None
        for parameter in _signature(current):
            if parameter.kind is parameter.VAR_KEYWORD:
                remaining = parameter.name
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                if number and parameter.default is parameter.empty:
                    # The class may give its base what that needs.
                    parameter = parameter.replace(default=None)
                parameters.setdefault(parameter.name, parameter)
        if isinstance(function, type):
            parameters.pop("self", None)
        if remaining in DELEGATES:
            return parameters | _own_parameters(DELEGATES[remaining])[0], False
        if remaining is None:
            return parameters, False
        if current is object.__init__ or number == len(functions) - 1:
            break
    name = f"{function.__module__}.{function.__qualname__}"
    if name in EXTERNAL_DELEGATES:
        target = EXTERNAL_DELEGATES[name]
        try:
            delegated, _ = _own_parameters(pkgutil.resolve_name(target))
        except ImportError:
            return parameters, True  # What is built will say that its package is missing.
        for option, annotation in EXTERNAL_TYPES.get(target, {}).items():
            delegated[option] = delegated[option].replace(annotation=annotation)
        return delegated | parameters, False
    return parameters, True


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function, with resolved annotations where that is possible."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of C code
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
    try:
        hints = get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError):  # names that only type checkers import
        hints = {}
    return [x.replace(annotation=hints.get(x.name, Any)) for x in parameters]


def matches(value: Any, annotation: Any) -> bool:
    """Return whether a value of a config has the annotated type; what a node builds is not known.

    A config has lists for tuples, sets and sequences, and text for paths.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    kind = origin or annotation
    if kind in (Union, types.UnionType):
        return any(matches(value, x) for x in arguments)
    if kind is Literal:
        return any(type(value) is type(x) and value == x for x in arguments)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER
    if (
        annotation is Any
        or not isinstance(kind, type)
        or (isinstance(value, Mapping) and "_target_" in value)
    ):
        return True
    if kind in EXPECTED:
        return isinstance(value, kind)
    if issubclass(kind, PathLike):
        return isinstance(value, str)
    if issubclass(kind, Mapping):
        keys, values = arguments or (Any, Any)
        return isinstance(value, Mapping) and all(
            matches(key, keys) and matches(item, values) for key, item in value.items()
        )
    if issubclass(kind, Iterable):
        if not isinstance(value, list):
            return False
        if kind is tuple and arguments and arguments[-1] is not ...:
            return len(value) == len(arguments) and all(map(matches, value, arguments))
        return all(matches(item, arguments[0] if arguments else Any) for item in value)
    return False


def describe(annotation: Any) -> str:
    """Return the annotated type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        literals = [y for x in arguments if get_origin(x) is Literal for y in get_args(x)]
        others = [x for x in arguments if get_origin(x) is not Literal]
        described = [describe(Literal[*dict.fromkeys(literals)])] if literals else []
        described += [describe(x) for x in others]
        return " or ".join(x for x in dict.fromkeys(described) if x != BUILT) or BUILT
    if origin is Literal:
        return f"one of {', '.join(dict.fromkeys(map(str, arguments)))}"
    kind = origin or annotation
    if kind in EXPECTED:
        return EXPECTED[kind]
    if isinstance(kind, type) and issubclass(kind, PathLike):
        return "a path"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, Collection | Iterable):
        count = (
            f"{len(arguments)} " if kind is tuple and arguments and arguments[-1] is not ... else ""
        )
        if arguments and get_origin(arguments[0]) is Literal:
            return f"a list of {', '.join(map(str, get_args(arguments[0])))}"
        return (
            f"a list of {count}{PLURALS[arguments[0]]}"
            if arguments and arguments[0] in PLURALS
            else "a list"
        )
    return BUILT
