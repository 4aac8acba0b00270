"""What a model looked at while it read one line."""

from typing import NamedTuple

from torch import Tensor

# role -> title, which tokens attend, which tokens are attended to
ROLES = {
    "encoder": ("Encoder self-attention", "source", "source"),
    "decoder": ("Decoder self-attention", "target", "target"),
    "cross": ("Cross-attention", "target", "source"),
}


class AttentionRecord(NamedTuple):
    """What a model looked at while it read one line. In a notebook it shows itself.

    Args:
        source_tokens: legible pieces on the source side; of a language model, those of its text.
        target_tokens: legible pieces on the target side: row i of cross-attention shows where the
            decoder looked when it wrote token i. Of a language model, those of its text.
        maps: by role "encoder", "decoder" or "cross", one tensor [h q k] a layer.
        source: the line.
        target: what was written for it; empty for a language model.
        read_tokens: what the decoder reads while it writes `target_tokens`, `<bos>` first; these
            themselves, if not given.
    """

    source_tokens: list[str]
    target_tokens: list[str]
    maps: dict[str, list[Tensor]]
    source: str = ""
    target: str = ""
    read_tokens: list[str] | None = None

    def tokens(self, role: str) -> tuple[list[str], list[str]]:
        """The tokens that attend, and those that are attended to."""
        if role == "cross":
            return self.target_tokens, self.source_tokens
        if role == "encoder":
            return self.source_tokens, self.source_tokens
        read = self.read_tokens or self.target_tokens
        return read, read

    def weights(self, role: str, layer: int) -> Tensor:
        """The map [h q k] of a layer, counted from 0, on the CPU.

        Raises:
            ValueError: there is none, or it does not fit its tokens.
        """
        if role not in self.maps:
            raise ValueError(f"role must be one of {', '.join(self.maps)}, got {role!r}.")
        layers = self.maps[role]
        if not 0 <= layer < len(layers):
            raise ValueError(f"layer must lie between 0 and {len(layers) - 1}, got {layer}.")
        weights = layers[layer].detach().cpu().float()
        queries, keys = map(len, self.tokens(role))
        if weights.ndim != 3 or tuple(weights.shape[1:]) != (queries, keys):
            raise ValueError(
                f"the {role} map of layer {layer + 1} must be [heads {queries} {keys}], for "
                f"{queries} query tokens and {keys} key tokens, got {list(weights.shape)}."
            )
        return weights

    def _repr_html_(self) -> str:
        from attention_zoo.tasks.views.attention_viewer.page import notebook_frame

        return notebook_frame(self)
