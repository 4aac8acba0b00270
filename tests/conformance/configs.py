"""An entry's options, as its yaml gives them."""

from functools import partial

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
options = partial(entry_options, heads=HEADS)


def parameters(entry: type) -> set[str]:
    return set(options_of(entry))
