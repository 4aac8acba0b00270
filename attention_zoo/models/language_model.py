"""The decoder-only language model (Radford et al. 2018)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.caches import LayeredCache, check_layered_cache
from attention_zoo.capture import Maps, capture_attention, group_by_role
from attention_zoo.factory import check_type, construct
from attention_zoo.masks import Mask, count_real_tokens, gather_broadcast
from attention_zoo.models.blocks import BlockOptions
from attention_zoo.models.embedding import OutputHead, TokenEmbedding
from attention_zoo.models.stacks import Attentions, Decoder, Positions
from attention_zoo.tensor_checks import check_indices


class LanguageModel(nn.Module):
    """Predicts each token from the tokens before it.

    Args:
        vocabulary_size: v.
        layers: number of layers.
        attention: factory of the mechanism, called with `dim`, `role` and `layer`; or a list with
            one for each layer, see `Stack`.
        position: factory of the positional encoding, or a list with one for each layer.
        share_kv: for each layer the one whose keys and values it reads, see `Stack`.
        tie_embeddings: one table for input and output (Press and Wolf 2017).
        block_options: those of `BlockOptions`: `dim`, `ffn_dim` and what else it has.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        layers: int,
        attention: Attentions,
        position: Positions,
        share_kv: Sequence[int | None] | None = None,
        tie_embeddings: bool = True,
        **block_options: Any,
    ) -> None:
        super().__init__()
        options = construct(BlockOptions, "the model", **block_options)
        check_type("tie_embeddings", tie_embeddings, bool)
        self.embedding = TokenEmbedding(vocabulary_size, options)
        self.decoder = Decoder(
            layers=layers,
            attention=attention,
            position=position,
            share_kv=share_kv,
            options=options,
        )
        self.head = OutputHead(self.embedding, options, tied=tie_embeddings)
        # The longest sequence that encoding and attention can take, if there is a limit.
        self.max_length = self.decoder.max_length

    def forward(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: LayeredCache | None = None,
        target_positions: Tensor | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute logits [b t v] for the token after each of `tokens` [b t].

        Args:
            tokens: [b t]; with a cache, only the new ones.
            key_mask: [b k], True at real tokens, over all tokens, cached ones included.
            segment_ids: [b k], likewise; numbers of the documents packed in a row. Attention stays
                within each document, and its positions start from zero.
            cache: from `new_cache`; it takes the tokens in.
            target_positions: [b a], of the tokens whose logits [b a v] are returned; default: all.
            head: computes what is returned of the last hidden states [b t d]; default: the model's
                own, which computes logits.

        Raises:
            UserError: tokens outside the vocabulary, or inputs of another shape or type.
        """
        self.embedding.check(tokens, "tokens")
        check_layered_cache(cache)
        start = 0 if cache is None else cache.length
        stop = start + tokens.shape[1]
        mask = Mask(key_mask=key_mask, segment_ids=segment_ids)
        mask.check_shape(batch=len(tokens), queries=stop, keys=stop)
        positions = positions_in_row(key_mask, segment_ids, stop, tokens.device)[:, start:]
        x = self.decoder(
            self.embedding(tokens),
            mask=mask,
            positions=positions,
            cache=cache,
        )
        if target_positions is not None:
            check_indices(target_positions, "target_positions", x)
            # The head costs most where the vocabulary is large.
            x = gather_broadcast(x, target_positions[:, :, None], dim=1)
        return (self.head if head is None else head)(x)

    def new_cache(self) -> LayeredCache:
        """Create an empty cache for decoding, or raise Unsupported if an attention has none."""
        return self.decoder.new_cache()

    def attention_maps(self, tokens: Tensor, *, segment_ids: Tensor | None = None) -> Maps:
        """Return the weights [b h q k] of every layer, under `decoder`."""
        with capture_attention(self) as captured:
            self(tokens, segment_ids=segment_ids)
        return group_by_role(captured)


def positions_in_row(
    key_mask: Tensor | None, segment_ids: Tensor | None, length: int, device: torch.device
) -> Tensor:
    """Return positions [b|1 length] that count real tokens only, from zero in each segment."""
    mask = Mask(key_mask=key_mask, segment_ids=segment_ids)
    counts, counts_before_segment = count_real_tokens(mask, length, device)
    # Padding at the start of a segment has the position of its first token.
    return (counts - counts_before_segment - 1).clamp(min=0)
