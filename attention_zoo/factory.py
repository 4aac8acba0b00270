"""Build entries of the zoo by name."""

import functools
import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from attention_zoo.attention.base import Attention
from attention_zoo.errors import UserError, short_repr
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import ATTENTION, POSITION, Role, check_acts_inside

Constructor = TypeVar("Constructor", bound=Callable[..., Any])

# What stands for a declared type, and its name in a refusal.
OPTION_TYPES: dict[type, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    bool: (bool, "true or false"),
    str: (str, "a word"),
}


def create_attention(
    name: str, *, dim: int, role: Role, position: str | None = None, **options: Any
) -> Attention:
    """Build an attention mechanism.

    Args:
        name: a registered name; see `list_attention`.
        dim: width of inputs and output.
        role: `causal`, `global` or `cross`.
        position: name of an encoding of this attention alone. In a model one encoding serves all
            layers; see `Attention.attach_position`.
        options: of the mechanism; `attention_zoo.ATTENTION[name]` documents them.

    Raises:
        Unsupported: an unknown name, or a combination that the cards do not declare.
        UserError: an option that the mechanism does not have, or a value it cannot take.

    >>> create_attention("grouped_query", dim=256, heads=8, kv_heads=2, role="causal").head_dim
    32
    """
    attention = construct(ATTENTION[name], name, dim=dim, role=role, **options)
    if position is not None:
        check_acts_inside(POSITION.card(position))
        attention.attach_position(create_position(position, **attention.position_sizes))
    return attention


def create_position(
    name: str, *, dim: int, heads: int, head_dim: int, role: Role, layer: int = 0, **options: Any
) -> PositionalEncoding:
    """Build a positional encoding, for a stack of layers or, as its card says, for one of them.

    Args:
        name: a registered name; see `list_position`.
        dim: width of the embeddings.
        heads: number of the attention's heads.
        head_dim: width of a head.
        role: of the attention that it serves.
        layer: index of the layer in its stack, from 0.
        options: of the encoding; `attention_zoo.POSITION[name]` documents them.
    """
    sizes = {"dim": dim, "heads": heads, "head_dim": head_dim, "role": role, "layer": layer}
    return construct(POSITION[name], name, **sizes, **options)


def construct(entry: type, name: str, **options: Any) -> Any:
    """Call `entry(**options)`, and refuse options that it does not have."""
    legal = options_of(entry)
    unexpected = [option for option in options if option not in legal]
    missing = [
        option
        for option, parameter in legal.items()
        if parameter.default is parameter.empty and option not in options
    ]
    if unexpected or missing:
        reason = (
            f"has no option {unexpected[0]!r}" if unexpected else f"needs the option {missing[0]!r}"
        )
        raise UserError(f"{name} {reason}. Its options: {', '.join(legal)}.")
    for option, value in options.items():
        check_type(option, value, legal[option].annotation)
    return entry(**options)


def check_type(option: str, value: object, annotation: Any) -> None:
    """Refuse null, and a value of another class, where an option is declared otherwise."""
    if isinstance(annotation, str) or annotation in (Any, inspect.Parameter.empty):
        return
    is_union = get_origin(annotation) in (Union, UnionType)
    types = get_args(annotation) if is_union else (annotation,)
    declared = [kind for kind in OPTION_TYPES if kind in types]
    others = [kind for kind in types if kind not in (*declared, NoneType)]
    if value is None:
        fits = NoneType in types
    elif any(get_origin(kind) or not isinstance(kind, type) for kind in others):
        fits = True  # What a list holds, or a factory takes, its reader has to check.
    else:
        fits = any(is_of_type(value, kind) for kind in declared) or isinstance(value, (*others,))
    if not fits:
        names = [OPTION_TYPES[kind][1] for kind in declared]
        names += [f"a {kind.__name__}" for kind in others if isinstance(kind, type)]
        words = " or ".join(names) or "given"
        raise UserError(f"{option} must be {words}, got {short_repr(value)}.")


def typed_options(init: Constructor) -> Constructor:
    """Let a constructor, or a function, refuse options of another type than it declares.

    These are the arguments that are given by name; see `check_type`.
    """
    declared = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(*args: Any, **options: Any) -> Any:
        for option, value in options.items():
            if option in declared:
                check_type(option, value, declared[option].annotation)
        return init(*args, **options)

    return cast(Constructor, checked)


def is_of_type(value: object, kind: type) -> bool:
    """Return whether a value may stand for a declared type: a truth value is no number."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, OPTION_TYPES[kind][0]) and not (
        isinstance(value, float) and not math.isfinite(value)
    )


def options_of(entry: type) -> dict[str, inspect.Parameter]:
    """Return the options of an entry's constructor, with those that it passes to base classes."""
    options: dict[str, inspect.Parameter] = {}
    decided: set[str] = set()
    for base in entry.__mro__:
        decided.update(vars(base).get("decided_options", ()))
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
            # Options of a base class come first, so that sizes are listed before details.
            options = {p.name: p for p in named} | options
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return {name: parameter for name, parameter in options.items() if name not in decided}
