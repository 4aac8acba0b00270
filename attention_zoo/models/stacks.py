"""Encoder and decoder: N layers and the positional encoding that they share."""

from collections.abc import Callable, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.caches import Cache, LayeredCache
from attention_zoo.errors import UserError, check_positive, short_repr
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import (
    AttentionFactory,
    AttentionSublayer,
    BlockOptions,
    FeedForward,
    check_factory,
)
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import Role

PositionFactory = Callable[..., PositionalEncoding]


class TransformerLayer(nn.Module):
    """Self-attention of a role, cross-attention if there is a factory of it, then feed-forward."""

    def __init__(
        self,
        attention: AttentionFactory,
        cross_attention: AttentionFactory | None,
        options: BlockOptions,
        *,
        role: Role,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.self_attention = AttentionSublayer(attention, options, role=role, layer=layer)
        self.cross_attention = None
        if cross_attention is not None:
            self.cross_attention = AttentionSublayer(
                cross_attention, options, role="cross", layer=layer
            )
        self.feed_forward = FeedForward(options)

    def create_caches(self) -> list[Cache | None]:
        """Create the caches of self-attention and, if there is any, of cross-attention."""
        sublayers = [self.self_attention, self.cross_attention]
        return [None if part is None else part.attention.new_cache() for part in sublayers]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask,
        context_mask: Mask = Mask(),
        positions: Tensor,
        caches: Sequence[Cache | None] = (None, None),
    ) -> Tensor:
        self_cache, cross_cache = caches
        x = self.self_attention(x, mask=mask, positions=positions, cache=self_cache)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context, mask=context_mask, cache=cross_cache)
        return self.feed_forward(x)


class Stack(nn.Module):
    """Layers over embedded tokens, a positional encoding that acts on them, and a final norm.

    The encoding acts on self-attention; the two sides of cross-attention share no positions.

    Args:
        layers: number of layers.
        attention: factory of the self-attention, called with `dim`, `role` and `layer` for each.
        cross_attention: factory of the cross-attention, if there is any.
        position: factory of the encoding, called once, or for each layer, as its card says.
        options: of the blocks.
    """

    role: ClassVar[Role]

    def __init__(
        self,
        *,
        layers: int,
        attention: AttentionFactory,
        cross_attention: AttentionFactory | None = None,
        position: PositionFactory,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        check_positive(layers=layers)
        stack = [
            TransformerLayer(attention, cross_attention, options, role=self.role, layer=index)
            for index in range(layers)
        ]
        if len({layer.self_attention.attention for layer in stack}) < layers:
            raise UserError(
                "the factory of attention must build one for each layer, got one twice."
            )
        self.layers = nn.ModuleList(stack)
        self.position = attach_positions([layer.self_attention for layer in stack], position)
        self.dropout = nn.Dropout(options.dropout)
        self.norm = options.create_final_norm()
        # The longest sequence that encoding and attention can take, if there is a limit.
        limits = [part.max_length for part in self.modules() if isinstance(part, Attention)]
        self.max_length = shortest_limit(self.position.max_length, *limits)

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
        """Encode or decode [b t d], attending to the context [b s d] if there is any: [b t d]."""
        if cache is not None and not isinstance(cache, LayeredCache):
            raise UserError(
                f"cache must come from new_cache() of the model, got {type(cache).__name__}."
            )
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


class Encoder(Stack):
    """A stack with global self-attention."""

    role = "global"


class Decoder(Stack):
    """A stack with causal self-attention, which can be decoded token by token."""

    role = "causal"

    def new_cache(self) -> LayeredCache:
        """Create empty caches for all layers."""
        layers = [cast(TransformerLayer, layer) for layer in self.layers]
        return LayeredCache([layer.create_caches() for layer in layers])


def attach_positions(
    layers: list[AttentionSublayer], factory: PositionFactory
) -> PositionalEncoding:
    """Attach one encoding to the attention of all layers, or one to each, as its card says.

    Returns:
        The encoding that acts before the layers.
    """
    check_factory(factory, "position")
    first = layers[0].attention
    position = factory(**first.position_sizes)
    if not isinstance(position, PositionalEncoding):
        raise UserError(
            f"the factory of position must build an encoding, got {short_repr(position)}."
        )
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
