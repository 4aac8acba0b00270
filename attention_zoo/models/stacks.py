"""Encoder and decoder: N layers and the positional encoding that they share."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.caches import Cache, LayeredCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import (
    AttentionFactory,
    AttentionSublayer,
    BlockOptions,
    CausalSelfAttention,
    CrossAttention,
    FeedForward,
    GlobalSelfAttention,
)
from attention_zoo.position.base import PositionalEncoding

PositionFactory = Callable[..., PositionalEncoding]


class Stack(nn.Module):
    """N layers over embedded tokens, the encoding that acts on them, and a norm after them.

    Args:
        layers: number of layers.
        position: factory of the encoding, called once, or for each layer, as its card says.
        options: of the blocks.
        attention: factories for the arguments of a layer, called with `dim`, `role` and `layer`.
    """

    layer_class: ClassVar[type[Any]]

    def __init__(
        self,
        *,
        layers: int,
        position: PositionFactory,
        options: BlockOptions,
        **attention: AttentionFactory | None,
    ) -> None:
        super().__init__()
        check_positive(layers=layers)
        stack = [self.layer_class(**attention, options=options, layer=i) for i in range(layers)]
        self.layers = nn.ModuleList(stack)
        self.position = attach_positions([layer.self_attention for layer in stack], position)
        self.dropout = nn.Dropout(options.dropout)
        self.norm = options.create_final_norm()
        # The longest sequence that encoding and attention can take, if there is a limit.
        limits = [part.max_length for part in self.modules() if isinstance(part, Attention)]
        self.max_length = shortest_limit(self.position.max_length, *limits)


class EncoderLayer(nn.Module):
    """Global self-attention, then feed-forward."""

    def __init__(
        self, attention: AttentionFactory, options: BlockOptions, *, layer: int = 0
    ) -> None:
        super().__init__()
        self.self_attention = GlobalSelfAttention(attention, options, layer=layer)
        self.feed_forward = FeedForward(options)

    def forward(self, x: Tensor, *, mask: Mask, positions: Tensor) -> Tensor:
        return self.feed_forward(self.self_attention(x, mask=mask, positions=positions))


class Encoder(Stack):
    """Layers of global self-attention and feed-forward, with the factory `attention`."""

    layer_class = EncoderLayer

    def forward(self, x: Tensor, *, mask: Mask, positions: Tensor) -> Tensor:
        """Encode [b s d] -> [b s d]."""
        positions = self.position.map_positions(positions)
        x = self.dropout(self.position.embed(x, positions))
        for layer in self.layers:
            x = layer(x, mask=mask, positions=positions)
        return self.norm(x)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention if there is a context, then feed-forward."""

    def __init__(
        self,
        attention: AttentionFactory,
        cross_attention: AttentionFactory | None,
        options: BlockOptions,
        *,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.self_attention = CausalSelfAttention(attention, options, layer=layer)
        self.cross_attention = (
            None
            if cross_attention is None
            else CrossAttention(cross_attention, options, layer=layer)
        )
        self.feed_forward = FeedForward(options)

    def create_caches(self) -> list[Cache | None]:
        """Create the caches of self-attention and, if there is any, of cross-attention."""
        sublayers = [self.self_attention, self.cross_attention]
        return [None if part is None else part.attention.new_cache() for part in sublayers]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask,
        context_mask: Mask,
        positions: Tensor,
        caches: Sequence[Cache | None] = (None, None),
    ) -> Tensor:
        self_cache, cross_cache = caches
        x = self.self_attention(x, mask=mask, positions=positions, cache=self_cache)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context, mask=context_mask, cache=cross_cache)
        return self.feed_forward(x)


class Decoder(Stack):
    """Layers of causal self-attention, cross-attention (optional) and feed-forward.

    The factories are `attention` and `cross_attention`, which is None for a language model. The
    encoding acts on self-attention; the two sides of cross-attention share no positions.
    """

    layer_class = DecoderLayer

    def new_cache(self) -> LayeredCache:
        """Create empty caches for all layers."""
        return LayeredCache([cast(DecoderLayer, layer).create_caches() for layer in self.layers])

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        context_mask: Mask = Mask(),
        positions: Tensor,
        cache: LayeredCache | None = None,
    ) -> Tensor:
        """Decode [b t d], attending to the context [b s d]: [b t d]."""
        positions = self.position.map_positions(positions)
        x = self.dropout(self.position.embed(x, positions))
        for index, layer in enumerate(self.layers):
            x = layer(
                x,
                context,
                mask=mask,
                context_mask=context_mask,
                positions=positions,
                caches=(None, None) if cache is None else cache.layers[index],
            )
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)


def attach_positions(
    layers: list[AttentionSublayer], factory: PositionFactory
) -> PositionalEncoding:
    """Attach one encoding to the attention of all layers, or one to each, as its card says.

    Returns:
        The encoding that acts before the layers.
    """
    first = layers[0].attention
    position = factory(**first.position_sizes)
    if not position.card.per_layer:
        for layer in layers:
            layer.attention.attach_position(position, shared=True)
        return position
    first.attach_position(position)
    for layer in layers[1:]:
        layer.attention.attach_position(factory(**layer.attention.position_sizes))
    return PositionalEncoding(**first.position_sizes)


def shortest_limit(*limits: int | None) -> int | None:
    """Return the smallest limit, or None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)
