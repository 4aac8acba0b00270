"""The language reference that is part of CPython (`pydoc_data.topics`)."""

from attention_zoo.errors import BadInput
from attention_zoo.tasks.data.sources.python_text import PythonText


class PythonDocs(PythonText):
    """The topics of `help()`, each of them one document; parts of other topics are left out."""

    name = "python_docs"

    def groups(self) -> dict[str, list[str]]:
        all_topics = load_topics()
        topics = without_contained_topics(all_topics)
        dropped = len(all_topics) - len(topics)
        self.notes = [f"{dropped} of {len(all_topics)} topics are a part of another one"]
        return {name: [text] for name, text in topics.items()}


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
