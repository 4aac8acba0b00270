"""Numbers in sentences."""


def pluralize(count: int, noun: str, ending: str = "s") -> str:
    """Return "1 step" or "1,000 steps": the count, and the noun with the ending of its plural."""
    return f"{count:,} {noun}{ending if count != 1 else ''}"
