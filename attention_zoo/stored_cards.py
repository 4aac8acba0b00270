"""The cards in a file: importing the entries, and torch with them, takes seconds.

The file holds a hash of the code that it was made from. It is not read where that code has changed.
`python -m attention_zoo.tasks.card_file` makes it anew.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
FILE = PACKAGE / "cards.json"
# What the cards, and the sizes of caches beside them, are made from.
SOURCES = ("zoo.py", "caches.py", "attention/**/*.py", "position/**/*.py", "conf/attention/*.yaml")


def read_stored_cards() -> dict[str, Any] | None:
    """Return what the file says of each entry, by kind and name; None if it is out of date."""
    if not FILE.is_file():
        return None
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return stored if stored["sources"] == hash_sources() else None


def hash_sources() -> str:
    """Return a hash of the names and contents of the files that the cards are made from."""
    digest = hashlib.sha256()
    for file in sorted(path for pattern in SOURCES for path in PACKAGE.glob(pattern)):
        for part in (file.relative_to(PACKAGE).as_posix().encode(), file.read_bytes()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()
