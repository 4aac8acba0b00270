"""Ways to compute softmax attention, alike in meaning: softmax(QKᵀ·scale + bias, masked) V.

Each backend is a module with a function `attend`, whose arguments `reference.attend` documents.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor

from attention_zoo.backends import flex, reference, sdpa
from attention_zoo.errors import Unsupported
from attention_zoo.zoo import unknown_name_message

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """A function that attends, and what it supports."""

    attend: Callable[..., Tensor]
    # Whether it skips blocks of queries and keys that do not see each other: then it takes whole
    # rows at once.
    sparse: bool = False
    dropout: bool = True


BACKENDS = {
    "reference": Backend(reference.attend),
    "sdpa": Backend(sdpa.attend),
    "flex": Backend(flex.attend, sparse=True, dropout=False),
}


@cache
def resolve(name: str, choices: tuple[str, ...]) -> str:
    """Return the backend that a name stands for: `auto` is the first choice, and is logged once.

    Raises:
        Unsupported: it is not among them.
    """
    if name == "auto":
        log.info("backend=auto is %s", choices[0])
        return choices[0]
    if name not in choices:
        raise Unsupported(unknown_name_message("backend", name, ["auto", *choices]))
    return name
