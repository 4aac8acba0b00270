"""An entry's options, as its yaml gives them."""

from copy import deepcopy
from functools import cache, partial
from typing import Any

from attention_zoo.factory import options_of
from attention_zoo.tasks.configuration.conf_files import (
    config_folder,
    entry_config,
    entry_options,
)
from attention_zoo.zoo import ATTENTION, POSITION

__all__ = ["GROUPS", "HEADS", "config", "config_folder", "options", "parameters"]

HEADS = 4
GROUPS = {"attention": ATTENTION, "position": POSITION}
config = partial(entry_config, heads=HEADS)
read_options = cache(partial(entry_options, heads=HEADS))


def options(group: str, name: str) -> dict[str, Any]:
    """Return the options in an entry's yaml, which is read once."""
    return deepcopy(read_options(group, name))


def parameters(entry: type) -> set[str]:
    return set(options_of(entry))
