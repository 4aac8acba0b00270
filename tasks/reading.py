"""What a model looked at while it read one line."""

from typing import NamedTuple

from torch import Tensor

# role -> title, which tokens attend, which tokens are attended to
ROLES = {
    "encoder": ("Encoder self-attention", "source", "source"),
    "decoder": ("Decoder self-attention", "target", "target"),
    "cross": ("Cross-attention", "target", "source"),
}


class AttentionReading(NamedTuple):
    """What a model looked at while it read one line.

    Args:
        source_tokens: legible pieces on the source side; empty for a language model.
        target_tokens: legible pieces on the target side, those that query.
        maps: by role "encoder", "decoder" or "cross", one tensor [h q k] a layer.
    """

    source_tokens: list[str]
    target_tokens: list[str]
    maps: dict[str, list[Tensor]]
