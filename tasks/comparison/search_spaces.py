"""Which options of its mechanisms are tuned of a candidate besides the learning rate."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from attention_zoo.factory import options_of
from attention_zoo.tasks.configuration.stacks import branches_by_role
from attention_zoo.zoo import ATTENTION


def search_space(config: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return an override for each value that the cards of a model's mechanisms name.

    Those of a mixed stack are options of their kind, as in `stack.a.temperature=4.0`. An option
    that was given, or that an experiment has changed, is left as it is.

    Args:
        config: the complete config of a candidate.
        overrides: of the candidate.
    """
    given = {x.lstrip("+~").partition("=")[0] for x in overrides}
    branches = {x.path: x for x in chain(*branches_by_role(config).values())}
    found = []
    for path, branch in branches.items():
        name = branch.attention["name"]
        defaults = options_of(ATTENTION[name])
        for option, values in ATTENTION.card(name).search_space.items():
            is_default = branch.attention.get(option) == defaults[option].default
            if is_default and f"{path}.{option}" not in given:
                found += [f"{path}.{option}={value}" for value in values]
    return found
