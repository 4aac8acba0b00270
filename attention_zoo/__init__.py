"""Interchangeable attention mechanisms and positional encodings behind one contract.

>>> import attention_zoo
>>> attention_zoo.card("alibi").acts
('scores',)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from attention_zoo.errors import BadInput, Unsupported, UserError
from attention_zoo.zoo import (
    ATTENTION,
    POSITION,
    AttentionCard,
    Card,
    PositionCard,
    unknown_name_message,
)

# These need torch, whose import takes over a second; light commands do without it.
if TYPE_CHECKING:
    from attention_zoo.factory import create_attention, create_position
    from attention_zoo.lookup import soft_lookup
    from attention_zoo.masks import Mask

    __version__: str

__all__ = [
    "ATTENTION",
    "POSITION",
    "AttentionCard",
    "BadInput",
    "Card",
    "Mask",
    "PositionCard",
    "Unsupported",
    "UserError",
    "card",
    "create_attention",
    "create_position",
    "list_attention",
    "list_position",
    "soft_lookup",
]


def list_attention() -> list[str]:
    """Return the names of all attention mechanisms."""
    return list(ATTENTION)


def list_position() -> list[str]:
    """Return the names of all positional encodings."""
    return list(POSITION)


def card(name: str) -> AttentionCard | PositionCard:
    """Return the card of an attention mechanism or a positional encoding.

    `ATTENTION.card` and `POSITION.card` return those of one kind.

    Raises:
        Unsupported: an unknown name.
    """
    if name in list(ATTENTION):
        return ATTENTION.card(name)
    if name in list(POSITION):
        return POSITION.card(name)
    raise Unsupported(unknown_name_message("attention or position", name, [*ATTENTION, *POSITION]))


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("attention-zoo")
    if name in __all__:
        module = {"Mask": "masks", "soft_lookup": "lookup"}.get(name, "factory")
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
