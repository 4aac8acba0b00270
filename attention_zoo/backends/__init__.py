"""Ways to compute softmax attention, alike in meaning: softmax(QKᵀ·scale + bias, masked) V.

Each backend is a module with one function,
`attend(q, k, v, *, visible, bias, scale, dropout) -> [b h q c]`, which a test holds against the
others. `reference` is the plain one, and also gives the weights.
"""

import logging
from collections.abc import Callable
from functools import cache

from torch import Tensor

from attention_zoo.backends import reference, sdpa
from attention_zoo.errors import Unsupported
from attention_zoo.zoo import unknown

log = logging.getLogger(__name__)

BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.attend,
    "sdpa": sdpa.attend,
}


@cache
def resolve(name: str) -> str:
    """The backend that a name stands for; `auto` is decided here, and logged once.

    Raises:
        Unsupported: no such backend.
    """
    if name == "auto":
        log.info("backend=auto is sdpa")
        return "sdpa"
    if name not in BACKENDS:
        raise Unsupported(unknown("backend", name, ["auto", *BACKENDS]))
    return name
