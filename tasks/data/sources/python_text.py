"""The base of the sources of text that comes with Python."""

import hashlib
import platform
from abc import abstractmethod
from typing import Any, ClassVar

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.cache import sha256_of_json
from attention_zoo.tasks.data.sources.base import SPLITS, Source


class PythonText(Source[list[str]]):
    """Documents in groups that stay together.

    The text differs between Python versions, so version and content are part of the cache key. A
    hash of a group's name decides the order in which groups fill test, then valid, then train.

    Args:
        valid_fraction: of the characters, for valid, and the same for test.
    """

    name: ClassVar[str]  # in the cache key

    def __init__(self, *, valid_fraction: float = 0.05) -> None:
        if not 0 < valid_fraction < 0.5:
            raise UserError(
                f"data.source.valid_fraction must lie between 0 and 0.5, got {valid_fraction}; "
                "0.05 is usual."
            )
        self.valid_fraction = valid_fraction

    @abstractmethod
    def groups(self) -> dict[str, list[str]]:
        """Return the documents of each group by its name, and set `notes`.

        Raise BadInput if this Python lacks them.
        """

    def splits(self) -> dict[str, list[str]]:
        groups = self.groups()
        sizes = {name: sum(map(len, texts)) for name, texts in groups.items()}
        max_characters = self.valid_fraction * sum(sizes.values())
        result: dict[str, list[str]] = {split: [] for split in SPLITS}
        filled = {"test": 0, "valid": 0}
        for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
            with_room = (x for x in filled if filled[x] + sizes[name] <= max_characters)
            split = next(with_room, "train")
            result[split] += groups[name]
            if split in filled:
                filled[split] += sizes[name]
        return result

    def cache_key(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "python": platform.python_version(),
            "content": sha256_of_json(self.groups()),
            "valid_fraction": self.valid_fraction,
        }
