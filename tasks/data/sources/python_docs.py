"""The language reference that ships inside CPython (`pydoc_data.topics`)."""

import hashlib
import platform
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.cache import sha256_of_json
from attention_zoo.tasks.data.sources.base import SPLITS, Source


class PythonDocs(Source[str]):
    """One document a topic of `help()`; topics that are a part of another one are left out.

    The text differs between Python versions, so version and content are part of the key. A hash
    of a topic's name decides the order in which topics fill test, then valid, then train.

    Args:
        share: of the characters for valid, and as much for test.
    """

    def __init__(self, *, share: float = 0.05) -> None:
        super().__init__()
        if not 0 < share < 0.5:
            raise UserError(f"share must lie between 0 and 0.5, got {share}; 0.05 is usual.")
        self.share = share

    def splits(self) -> dict[str, list[str]]:
        topics = load_topics()
        whole = without_parts(topics)
        self.notes = [
            f"{len(topics) - len(whole)} of {len(topics)} topics are a part of another one"
        ]
        room = self.share * sum(map(len, whole.values()))
        filled: dict[str, list[str]] = {split: [] for split in SPLITS}
        for name in sorted(whole, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
            text = whole[name]
            for split in ("test", "valid"):
                if sum(map(len, filled[split])) + len(text) <= room:
                    filled[split].append(text)
                    break
            else:
                filled["train"].append(text)
        return filled

    def key(self) -> dict[str, Any]:
        return {
            "source": "python_docs",
            "python": platform.python_version(),
            "content": sha256_of_json(load_topics()),
            "share": self.share,
        }


def load_topics() -> dict[str, str]:
    """Topic names to texts. Raises BadInput where this Python comes without them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadInput(
            "this Python comes without pydoc_data, the text of help(); install the full standard "
            "library, or take your own text: data=text_files."
        ) from None
    return dict(topics)


def without_parts(topics: dict[str, str]) -> dict[str, str]:
    """The topics whose paragraphs are not all found in one other topic (of equals, the first
    stays).

    Paragraphs of up to 80 characters are left aside: headings are underlined otherwise elsewhere.
    """
    paragraphs = {
        name: frozenset(part for part in map(unwrapped, text.split("\n\n")) if len(part) > 80)
        for name, text in topics.items()
    }
    return {
        name: text
        for name, text in topics.items()
        if not paragraphs[name]
        or not any(
            paragraphs[name] < other or (paragraphs[name] == other and name > rival)
            for rival, other in paragraphs.items()
        )
    }


def unwrapped(paragraph: str) -> str:
    """A paragraph on one line."""
    return " ".join(paragraph.split())
