"""The encoder-decoder Transformer (Vaswani et al. 2017)."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from attention_zoo.attention.inputs import resolve_positions
from attention_zoo.caches import LayeredCache, check_layered_cache
from attention_zoo.capture import Maps, capture_attention, group_by_role
from attention_zoo.errors import UserError
from attention_zoo.factory import check_type, construct
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import BlockOptions
from attention_zoo.models.embedding import OutputHead, TokenEmbedding
from attention_zoo.models.stacks import (
    Attentions,
    Decoder,
    Encoder,
    PositionFactory,
    Positions,
    shortest_limit,
)
from attention_zoo.tensor_checks import is_eager_cpu


class Seq2Seq(nn.Module):
    """Reads a source sequence and writes a target sequence token by token.

    Args:
        vocabulary_size: v, shared by source and target.
        pad_id: the token that fills shorter rows at their end.
        layers: of encoder and decoder each; `encoder_layers` and `decoder_layers` override it.
        encoder_attention: factory, called with `dim`, `role` and `layer`; or a list with one for
            each layer, see `Stack`. Likewise `decoder_attention` and `cross_attention`.
        position: factory of the positional encoding; encoder and decoder get one each.
            `encoder_position` and `decoder_position`, which may be lists, override it.
        encoder_share_kv: for each layer the one whose keys and values it reads, see `Stack`.
            Likewise `decoder_share_kv` and, for cross-attention, `cross_share_kv`.
        tie_embeddings: one table for source, target and output (Vaswani et al. 2017, §3.4).
        block_options: those of `BlockOptions`: `dim`, `ffn_dim` and what else it has.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        pad_id: int,
        layers: int,
        encoder_attention: Attentions,
        decoder_attention: Attentions,
        cross_attention: Attentions,
        position: PositionFactory | None = None,
        encoder_position: Positions | None = None,
        decoder_position: Positions | None = None,
        encoder_layers: int | None = None,
        decoder_layers: int | None = None,
        encoder_share_kv: Sequence[int | None] | None = None,
        decoder_share_kv: Sequence[int | None] | None = None,
        cross_share_kv: Sequence[int | None] | None = None,
        tie_embeddings: bool = True,
        **block_options: Any,
    ) -> None:
        super().__init__()
        options = construct(BlockOptions, "the model", **block_options)
        check_type("tie_embeddings", tie_embeddings, bool)
        check_type("pad_id", pad_id, int)
        self.source_embedding = TokenEmbedding(vocabulary_size, options)
        if cross_attention is None:  # A stack without any would never see the source.
            raise UserError("cross_attention must be a factory, or a list of them, got None.")
        if not 0 <= pad_id < vocabulary_size:
            raise UserError(
                f"pad_id must be a token, from 0 to {vocabulary_size - 1}, got {pad_id}."
            )
        self.pad_id = pad_id
        self.target_embedding = self.source_embedding
        if not tie_embeddings:
            self.target_embedding = TokenEmbedding(vocabulary_size, options)
        self.encoder = Encoder(
            layers=layers if encoder_layers is None else encoder_layers,
            attention=encoder_attention,
            position=cast(Positions, position if encoder_position is None else encoder_position),
            share_kv=encoder_share_kv,
            options=options,
        )
        self.decoder = Decoder(
            layers=layers if decoder_layers is None else decoder_layers,
            attention=decoder_attention,
            cross_attention=cross_attention,
            position=cast(Positions, position if decoder_position is None else decoder_position),
            share_kv=decoder_share_kv,
            cross_share_kv=cross_share_kv,
            options=options,
        )
        self.head = OutputHead(self.target_embedding, options, tied=tie_embeddings)
        # The longest sequence that encoding and attention can take, if there is a limit.
        self.max_length = shortest_limit(self.encoder.max_length, self.decoder.max_length)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute logits [b t v] for the token after each of `target` [b t], by teacher forcing.

        Args:
            source: [b s], filled up by `pad_id`.
            target: [b t], likewise.
            head: as in `decode`.
        """
        source_mask = source != self.pad_id
        return self.decode(target, self.encode(source, source_mask), source_mask, head=head)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """Encode source tokens [b s], True at the real ones in `source_mask`: memory [b s d]."""
        self.source_embedding.check(source, "source")
        x = self.source_embedding(source)
        return self.encoder(x, mask=Mask(key_mask=source_mask), positions=resolve_positions(x))

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        source_mask: Tensor | None,
        *,
        cache: LayeredCache | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute logits [n t v] for the token after each of `target` [n t].

        Args:
            target: a row for each source, or several, which are neighbours; n is a multiple of b.
                With a cache, only the tokens that it has not seen. Filled up at the end: padding
                there lies in every real token's future.
            memory: [b s d] from `encode`.
            source_mask: [b s], True at real source tokens; None: all are real.
            cache: from `new_cache`; it takes the tokens in.
            head: computes what is returned of the last hidden states [b t d]; default: the model's
                own, which computes logits.
        """
        self.target_embedding.check(target, "target")
        check_layered_cache(cache)
        if len(target) != len(memory) and (not len(memory) or len(target) % len(memory)):
            raise UserError(
                "target must have a row for each row of memory, or as many for each, got "
                f"{len(target)} rows for {len(memory)}."
            )
        context_mask = Mask(key_mask=source_mask)
        # A step of decoding is short: it takes no mask if no source has padding.
        if cache is not None and source_mask is not None and is_eager_cpu(source_mask):
            context_mask.check_shape(batch=len(memory), queries=0, keys=memory.shape[1])
            context_mask = Mask() if source_mask.all() else context_mask
        x = self.decoder(
            self.target_embedding(target),
            memory,
            context_mask=context_mask,
            positions=resolve_positions(target, cache=cache),
            cache=cache,
        )
        return (self.head if head is None else head)(x)

    def new_cache(self) -> LayeredCache:
        """Create an empty cache for decoding, or raise Unsupported if an attention has none."""
        return self.decoder.new_cache()

    def attention_maps(self, source: Tensor, target: Tensor) -> Maps:
        """Return the weights [b h q k] of every layer under `encoder`, `decoder` and `cross`."""
        with capture_attention(self) as captured:
            self(source, target)
        return group_by_role(captured)
