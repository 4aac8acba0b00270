"""`python -m attention_zoo.tasks.card_file`: write the cards of all entries into `cards.json`."""

import json
from dataclasses import asdict
from typing import Any

from attention_zoo.stored_cards import FILE, hash_sources
from attention_zoo.zoo import ATTENTION, POSITION, AttentionCard, discover

# The size of the model whose cache is measured: one layer of the base model.
DIM, HEADS, TOKENS = 512, 8, 1024
LONG = 2**15  # tokens; the growth of a cache is told from this length and its double


def main() -> None:
    """Write the file."""
    FILE.write_text(render_cards(), encoding="utf-8")


def render_cards() -> str:
    """Return what the file has to hold: a line for each entry of ours."""
    discover()
    parts = [f'"sources": "{hash_sources()}"']
    for registry in (ATTENTION, POSITION):
        entries: list[Any] = [x for x in map(registry.__getitem__, registry) if is_ours(x)]
        lines = ",\n".join(f'"{x.card.name}": {describe_entry(x)}' for x in entries)
        parts.append(f'"{registry.kind}": {{\n{lines}\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def is_ours(entry: type) -> bool:
    """Return whether this package has an entry, and not a plugin."""
    return entry.__module__.startswith("attention_zoo.")


def describe_entry(entry: Any) -> str:
    """Return what the file has to hold of an entry, as JSON."""
    is_attention = isinstance(entry.card, AttentionCard)
    fields = {
        "module": entry.__module__,
        "card": asdict(entry.card),
        "decode_state": decode_state(entry.card) if is_attention else {},
    }
    return json.dumps(fields, ensure_ascii=False)


def decode_state(card: AttentionCard) -> dict[int, int]:
    """Return how many numbers the cache keeps of a sequence, by its number of tokens."""
    if not card.cache:
        return {}

    import torch

    from attention_zoo.factory import create_attention
    from attention_zoo.tasks.configuration.conf_files import entry_options

    role = next(role for role in card.roles if role != "global")
    with torch.device("meta"):
        options = entry_options("attention", card.name, heads=HEADS)
        attention = create_attention(card.name, dim=DIM, role=role, **options)
    return {tokens: attention.decode_state(tokens) for tokens in (1, TOKENS, LONG, 2 * LONG)}


if __name__ == "__main__":
    main()
