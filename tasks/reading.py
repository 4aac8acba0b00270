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
    """What a model looked at while it read one line. In a notebook it shows itself.

    Args:
        source_tokens: legible pieces on the source side; of a language model, those of its text.
        target_tokens: legible pieces on the target side: row i of cross-attention shows where the
            decoder looked when it wrote token i. Of a language model, those of its text.
        maps: by role "encoder", "decoder" or "cross", one tensor [h q k] a layer.
        source: the line.
        target: what was written for it; empty for a language model.
    """

    source_tokens: list[str]
    target_tokens: list[str]
    maps: dict[str, list[Tensor]]
    source: str = ""
    target: str = ""

    def tokens(self, role: str) -> tuple[list[str], list[str]]:
        """The tokens that attend, and those that are attended to.

        A translation's decoder attends within what it has read: `<bos>`, then what it wrote.
        """
        if role == "cross":
            return self.target_tokens, self.source_tokens
        if role == "encoder":
            return self.source_tokens, self.source_tokens
        read = ["<bos>", *self.target_tokens[:-1]] if "cross" in self.maps else self.target_tokens
        return read, read

    def _repr_html_(self) -> str:
        from attention_zoo.tasks.attending.page import framed

        return framed(self)
