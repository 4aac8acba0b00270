"""The decoder-only language model (Radford et al. 2018)."""

import torch
from torch import Tensor, nn

from attention_zoo.caches import LayeredCache
from attention_zoo.capture import Maps, by_part, watching
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import Activation, AttentionFactory, BlockOptions, Norm, NormOrder
from attention_zoo.models.embedding import TokenEmbedding, output_head
from attention_zoo.models.stacks import Decoder, PositionFactory


class LanguageModel(nn.Module):
    """Predicts each token from those before it.

    Args:
        vocabulary_size: v.
        dim, hidden, activation, norm, norm_order, dropout: as `BlockOptions` says.
        layers: their number.
        attention: factory of the mechanism, called with `dim`, `role` and `layer`.
        position: factory of the positional encoding.
        tie_embeddings: one table for input and output (Press and Wolf 2017).
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        dim: int,
        hidden: int,
        layers: int,
        attention: AttentionFactory,
        position: PositionFactory,
        activation: Activation = "gelu",
        norm: Norm = "layer",
        norm_order: NormOrder = "pre",
        dropout: float = 0.1,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__()
        options = BlockOptions(
            dim=dim,
            hidden=hidden,
            activation=activation,
            norm=norm,
            norm_order=norm_order,
            dropout=dropout,
        )
        self.embedding = TokenEmbedding(vocabulary_size, dim)
        self.decoder = Decoder(
            layers=layers,
            attention=attention,
            cross_attention=None,
            position=position,
            options=options,
        )
        self.head = output_head(self.embedding, tied=tie_embeddings)

    @property
    def max_length(self) -> int | None:
        """The longest sequence that it can take, if encoding or attention have a limit."""
        return self.decoder.max_length

    def forward(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
        cache: LayeredCache | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Logits [b t v] for the token after each of `tokens` [b t].

        Args:
            tokens: with a cache, only those that it has not seen.
            padding: [b k], True at real tokens, over all tokens, those in the cache included.
            segments: [b k], likewise; numbers of the documents packed in a row. Attention stays
                within each, and its positions start from zero.
            places: [b a], of the tokens whose logits [b a v] are wanted; all, if not given.
        """
        start = 0 if cache is None else cache.length
        stop = start + tokens.shape[1]
        positions = places_in_row(padding, segments, stop, tokens.device)[:, start:]
        x = self.decoder(
            self.embedding(tokens),
            mask=Mask(padding=padding, segments=segments),
            positions=positions,
            cache=cache,
        )
        if places is not None:
            # The head costs most where the vocabulary is large.
            x = x.take_along_dim(places[:, :, None], dim=1)
        return self.head(x)

    def new_cache(self) -> LayeredCache:
        """For decoding token by token.

        Raises:
            Unsupported: an attention without cached decoding.
        """
        return self.decoder.new_cache()

    def attention_maps(self, tokens: Tensor, *, segments: Tensor | None = None) -> Maps:
        """Weights [b h q k] of every layer, under `decoder`."""
        with watching(self) as watched:
            self(tokens, segments=segments)
        return by_part(watched)


def places_in_row(
    padding: Tensor | None, segments: Tensor | None, length: int, device: torch.device
) -> Tensor:
    """[b|1 length]: places counted over real tokens only, and from zero in each segment."""
    places = torch.arange(length, device=device)[None, :]
    before = places
    if padding is not None:
        before = padding.cumsum(dim=1) - padding.long()
        places = (padding.cumsum(dim=1) - 1).clamp(min=0)
    if segments is not None:
        starts = torch.ones_like(segments, dtype=torch.bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        # What stands before a segment: its first token, if padded, has the last real one's place.
        before = torch.where(starts, before, 0).cummax(dim=1).values
        places = (places - before).clamp(min=0)
    return places
