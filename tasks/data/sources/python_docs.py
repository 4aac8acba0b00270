"""The language reference that is part of CPython (`pydoc_data.topics`)."""

import hashlib
import platform
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.cache import sha256_of_json
from attention_zoo.tasks.data.sources.base import SPLITS, Source


class PythonDocs(Source[list[str]]):
    """The topics of `help()`, each of them one document; parts of other topics are left out.

    The text differs between Python versions, so version and content are part of the cache key. A
    hash of a topic's name decides the order in which topics fill test, then valid, then train.

    Args:
        valid_fraction: of the characters, for valid, and the same for test.
    """

    def __init__(self, *, valid_fraction: float = 0.05) -> None:
        if not 0 < valid_fraction < 0.5:
            raise UserError(
                f"data.source.valid_fraction must lie between 0 and 0.5, got {valid_fraction}; "
                "0.05 is usual."
            )
        self.valid_fraction = valid_fraction

    def splits(self) -> dict[str, list[str]]:
        all_topics = load_topics()
        topics = without_contained_topics(all_topics)
        dropped = len(all_topics) - len(topics)
        self.notes = [f"{dropped} of {len(all_topics)} topics are a part of another one"]
        max_characters = self.valid_fraction * sum(map(len, topics.values()))
        result: dict[str, list[str]] = {split: [] for split in SPLITS}
        for name in sorted(topics, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
            text = topics[name]
            size = {split: sum(map(len, result[split])) + len(text) for split in ("test", "valid")}
            with_room = (split for split in size if size[split] <= max_characters)
            result[next(with_room, "train")].append(text)
        return result

    def cache_key(self) -> dict[str, Any]:
        return {
            "source": "python_docs",
            "python": platform.python_version(),
            "content": sha256_of_json(load_topics()),
            "valid_fraction": self.valid_fraction,
        }


def load_topics() -> dict[str, str]:
    """Return the texts by topic. Raise BadInput if this Python lacks them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadInput(
            "this Python comes without pydoc_data, the text of help(); install the full standard "
            "library, or take your own text: data=text_files."
        ) from None
    return dict(topics)


def without_contained_topics(topics: dict[str, str]) -> dict[str, str]:
    """Return the topics, without those whose paragraphs are all in one other topic.

    Of topics with the same paragraphs, the first one stays. Paragraphs of up to 80 characters do
    not count, as headings are underlined in different ways.
    """
    paragraphs: dict[str, set[str]] = {}
    for name, text in topics.items():
        joined = (" ".join(part.split()) for part in text.split("\n\n"))
        paragraphs[name] = {paragraph for paragraph in joined if len(paragraph) > 80}

    def is_contained(name: str) -> bool:
        part = paragraphs[name]
        return bool(part) and any(
            part < whole or (part == whole and name > other) for other, whole in paragraphs.items()
        )

    return {name: text for name, text in topics.items() if not is_contained(name)}
