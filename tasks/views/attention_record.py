"""The attention of a model over one line."""

from typing import NamedTuple

from torch import Tensor

from attention_zoo.capture import Maps

# role -> title, which tokens attend, which tokens are attended to
ROLES = {
    "encoder": ("Encoder self-attention", "source", "source"),
    "decoder": ("Decoder self-attention", "target", "target"),
    "cross": ("Cross-attention", "target", "source"),
}


class AttentionRecord(NamedTuple):
    """The attention of a model over one line, with the tokens.

    The decoder predicted target token i with the attention in row i of cross-attention. The tokens
    of a language model, on both sides, are those of its text.
    """

    source_tokens: list[str]  # readable
    target_tokens: list[str]
    maps: dict[str, list[Tensor]]  # by role "encoder", "decoder" or "cross", [h q k] of each layer
    source: str = ""  # the line
    target: str = ""  # its translation; empty for a language model
    decoder_input_tokens: list[str] | None = None  # `<bos>` first; default: `target_tokens`

    def tokens(self, role: str) -> tuple[list[str], list[str]]:
        """Return the tokens that attend, and the tokens that they attend to."""
        if role == "cross":
            return self.target_tokens, self.source_tokens
        encoder, decoder = self.source_tokens, self.decoder_input_tokens or self.target_tokens
        return (encoder, encoder) if role == "encoder" else (decoder, decoder)

    def weights(self, role: str, layer: int) -> Tensor:
        """Return the map [h q k] of a layer, counted from 0, on the CPU; refuse a wrong one."""
        if role not in self.maps:
            raise ValueError(f"role must be one of {', '.join(self.maps)}, got {role!r}.")
        layers = self.maps[role]
        if not 0 <= layer < len(layers):
            raise ValueError(f"layer must lie between 0 and {len(layers) - 1}, got {layer}.")
        weights = layers[layer].detach().cpu().float()
        queries, keys = map(len, self.tokens(role))
        if weights.ndim != 3 or tuple(weights.shape[1:]) != (queries, keys):
            raise ValueError(
                f"the {role} map of layer {layer} must be [heads {queries} {keys}], for "
                f"{queries} query tokens and {keys} key tokens, got {list(weights.shape)}."
            )
        return weights


def first_example(maps: Maps) -> Maps:
    """Return the maps [h q k] of the first example of a batch [b h q k], in float32 on the CPU."""
    return {role: [layer[0].float().cpu() for layer in layers] for role, layers in maps.items()}


def name_layer(layer: int, count: int) -> str:
    """Return `layer 1 of 0–3`: the name of a layer, which counts from 0 as in the model."""
    return f"layer {layer} of 0–{count - 1}" if count > 1 else f"layer {layer}"
