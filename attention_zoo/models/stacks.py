"""Encoder and decoder: N layers and the positional encoding that they share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.projections import FirstValues, mix_values
from attention_zoo.attention.sharing import SharedKV
from attention_zoo.caches import Cache, LayeredCache
from attention_zoo.errors import Unsupported, UserError, check_positive, short_repr
from attention_zoo.factory import check_type
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import (
    AttentionFactory,
    AttentionSublayer,
    BlockOptions,
    FeedForward,
    check_factory,
)
from attention_zoo.models.dropout import Dropout
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import BEFORE_ATTENTION, PositionCard, Role, join_names

PositionFactory = Callable[..., PositionalEncoding]
# A factory for all layers; or one for each layer, or a tuple of those side by side in a layer.
Attentions = AttentionFactory | Sequence[AttentionFactory | tuple[AttentionFactory, ...]]
Positions = PositionFactory | Sequence[PositionFactory | tuple[PositionFactory, ...]]
Factory = TypeVar("Factory", bound=Callable[..., Any])


class TransformerLayer(nn.Module):
    """Self-attention of a role, cross-attention if there is a factory of it, then feed-forward.

    A tuple of factories builds mechanisms that stand side by side. Without `ffn_dim` there is no
    feed-forward.
    """

    def __init__(
        self,
        attention: AttentionFactory | tuple[AttentionFactory, ...],
        cross_attention: AttentionFactory | tuple[AttentionFactory, ...] | None,
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
        self.is_parallel = options.parallel_feed_forward
        if self.is_parallel and (options.ffn_dim is None or cross_attention is not None):
            raise Unsupported(
                "parallel_feed_forward needs layers of self-attention and a feed-forward, got "
                f"{'cross-attention' if cross_attention is not None else 'ffn_dim=None'}."
            )
        self.feed_forward = None if options.ffn_dim is None else FeedForward(options)

    def create_caches(self) -> list[Cache | None]:
        """Create the caches of self-attention and, if there is any, of cross-attention.

        There is none for one that reads the keys and values of another layer.
        """
        sublayers = [self.self_attention, self.cross_attention]
        return [None if part is None else part.new_cache() for part in sublayers]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask,
        context_mask: Mask = Mask(),
        positions: Tensor,
        caches: Sequence[Cache | None] = (None, None),
        shared: Sequence[SharedKV | None] = (None, None),
        first_values: FirstValues | None = None,
    ) -> Tensor:
        inputs, cross_inputs = (
            {"cache": cache, "shared": kv} for cache, kv in zip(caches, shared, strict=True)
        )
        parallel = None
        if self.is_parallel:
            assert self.feed_forward is not None
            parallel = self.feed_forward.transform
        x = self.self_attention(
            x,
            mask=mask,
            positions=positions,
            parallel=parallel,
            first_values=first_values,
            **inputs,
        )
        if self.cross_attention is not None:
            shape = x.shape
            # Queries of cross-attention do not see one another, so those of one context are joined.
            if context is not None and len(context) < len(x):
                x = x.reshape(len(context), -1, x.shape[2])
            x = self.cross_attention(x, context, mask=context_mask, **cross_inputs).reshape(shape)
        if self.feed_forward is None or self.is_parallel:
            return x
        return self.feed_forward(x)


class Stack(nn.Module):
    """Layers over embedded tokens, a positional encoding that acts on them, and a final norm.

    The encoding acts on self-attention; the two sides of cross-attention share no positions.

    Layers may differ: `attention`, `cross_attention` and `position` are a factory for all layers,
    or a list with one for each, in which a tuple stands for mechanisms side by side in a layer.
    Layers with the same factory of positions share one encoding, if its card does not say that each
    layer has its own. An encoding that acts before the layers, as on embeddings, must be that of
    all.

    Args:
        layers: number of layers.
        attention: of the self-attention, called with `dim`, `role` and `layer` for each.
        cross_attention: of the cross-attention, if there is any.
        position: of the encoding, called once, or for each layer, as its card says.
        options: of the blocks.
        share_kv: for each layer the earlier one, counted from 0, whose keys and values its
            self-attention reads, or None for its own (Brandon et al. 2024, arXiv 2405.12981).
            Reading layers have neither projections nor a cache of them.
        cross_share_kv: the same for cross-attention.

    Raises:
        UserError: lists of another length than `layers`, or a layer to read from that is not an
            earlier one with keys and values of its own.
        Unsupported: an encoding that an attention cannot take, or one that acts before the layers
            and is not that of all; or keys and values that cannot be shared.
    """

    role: ClassVar[Role]

    def __init__(
        self,
        *,
        layers: int,
        attention: Attentions,
        cross_attention: Attentions | None = None,
        position: Positions,
        options: BlockOptions,
        share_kv: Sequence[int | None] | None = None,
        cross_share_kv: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        check_positive(layers=layers)
        crosses: list[tuple[AttentionFactory, ...] | None] = [None] * layers
        if cross_attention is not None:
            crosses = [*spread_factories(cross_attention, layers, "cross_attention")]
        attentions = spread_factories(attention, layers, "attention")
        positions = spread_factories(position, layers, "position")
        stack = []
        for index, cross in enumerate(crosses):
            with named_layer(index, attention, cross_attention, position):
                stack.append(
                    TransformerLayer(attentions[index], cross, options, role=self.role, layer=index)
                )
        branches = [part for layer in stack for part in layer.self_attention.branches]
        if len({*branches}) < len(branches):
            raise UserError(
                "the factory of attention must build one for each layer, got one twice."
            )
        self.layers = nn.ModuleList(stack)
        shared: dict[tuple[Any, ...], PositionalEncoding] = {}
        for index, layer in enumerate(stack):
            with named_layer(index, attention, cross_attention, position):
                attach_positions(layer.self_attention, positions[index], shared)
        self.kv_sources = [
            *zip(
                share_layers(share_kv, [x.self_attention for x in stack], "share_kv"),
                share_layers(cross_share_kv, [x.cross_attention for x in stack], "cross_share_kv"),
                strict=True,
            )
        ]
        self.mixes_values = options.value_residual
        if self.mixes_values:
            mix_layer_values([x.self_attention for x in stack], attention)
        # One encoding of all layers may act before them; those of some layers act inside.
        of_some = [*shared.values()]
        if len(of_some) == 1 and all(part.position is of_some[0] for part in branches):
            self.position = of_some.pop()
        else:
            self.position = PositionalEncoding(**branches[0].position_sizes)
        for encoding in of_some:
            refuse_before_some(encoding.card)
        self.layer_positions = nn.ModuleList(of_some)
        self.dropout = Dropout(options.dropout)
        self.norm = options.create_final_norm()
        # The longest sequence that encodings and attention can take, if there is a limit.
        parts = [x for x in self.modules() if isinstance(x, Attention | PositionalEncoding)]
        self.max_length = shortest_limit(*(part.max_length for part in parts))

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
        positions = self.position.map_positions(positions)
        x = self.dropout(self.position.embed(x, positions))
        shared: dict[tuple[int, int], SharedKV] = {}
        first_values = FirstValues() if self.mixes_values else None
        for index, layer in enumerate(self.layers):
            caches = (None, None) if cache is None else cache.layers[index]
            of_layer: list[SharedKV | None] = []
            for part, source in enumerate(self.kv_sources[index]):
                if source == index:
                    past = caches[part]
                    shared[source, part] = SharedKV(0 if past is None else past.length)
                of_layer.append(None if source is None else shared[source, part])
            x = layer(
                x,
                context,
                mask=mask,
                context_mask=context_mask,
                positions=positions,
                caches=caches,
                shared=of_layer,
                first_values=first_values,
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


def share_layers(
    share_kv: Sequence[int | None] | None, layers: Sequence[AttentionSublayer | None], name: str
) -> list[int | None]:
    """Let layers read keys and values; return the layer that has them, for all that share any."""
    if share_kv is None:
        return [None] * len(layers)
    if not isinstance(share_kv, Sequence) or len(share_kv) != len(layers):
        raise UserError(
            f"{name} must have an entry for each of {len(layers)} layers, got "
            f"{len(share_kv) if isinstance(share_kv, Sequence) else short_repr(share_kv)}."
        )
    for index, source in enumerate(share_kv):
        check_type(f"an entry of {name}", source, int | None)
        if source is None:
            continue
        if not 0 <= source < index or share_kv[source] is not None:
            raise UserError(
                f"{name} must name an earlier layer with keys and values of its own, got {source} "
                f"for layer {index}."
            )
        reader, other = layers[index], layers[source]
        if reader is None or other is None:
            raise UserError(f"{name} needs layers with cross-attention, which there are none of.")
        with named_layer(index, share_kv):
            if len(reader.branches) > 1 or len(other.branches) > 1:
                raise Unsupported(
                    "keys and values are shared by layers with one mechanism each, not by those "
                    f"side by side; the source is layer {source}."
                )
            reader.branches[0].read_kv_of(other.branches[0])
    sources = {*share_kv}
    return [index if index in sources else source for index, source in enumerate(share_kv)]


def mix_layer_values(layers: Sequence[AttentionSublayer], attention: Attentions) -> None:
    """Mix the values of the first layer into those of the others that have values of their own."""
    first, *later = layers
    mixing = [x for x in later if not x.branches[0].reads_kv]
    if not mixing:
        raise UserError(
            "value_residual mixes the values of the first layer into those of later ones: it needs "
            f"another layer with values of its own, got layers={len(layers)}."
        )
    for layer in mixing:
        with named_layer(layer.branches[0].layer, attention):
            if len(layer.branches) != len(first.branches):
                raise Unsupported(
                    "value_residual needs as many mechanisms side by side as the first layer has, "
                    f"got {len(layer.branches)} and {len(first.branches)}."
                )
            for index, pair in enumerate(zip(layer.branches, first.branches, strict=True)):
                mix_values(*pair, branch=index)


def spread_factories(
    factories: Factory | Sequence[Factory | tuple[Factory, ...]], layers: int, name: str
) -> list[tuple[Factory, ...]]:
    """Return the factories of each layer, of one for all layers or of a list for each."""
    if not isinstance(factories, Sequence) or isinstance(factories, str):
        check_factory(factories, name)
        return [(factories,)] * layers
    if len(factories) != layers:
        raise UserError(
            f"{name} must be one factory, or a list of one for each of {layers} layers, got "
            f"{len(factories)}."
        )
    spread: list[Any] = [x if isinstance(x, tuple) else (x,) for x in factories]
    for factory in chain(*spread):
        check_factory(factory, name)
    return spread


@contextmanager
def named_layer(index: int, *factories: object) -> Iterator[None]:
    """Name the layer in what its parts refuse, if layers differ."""
    try:
        yield
    except UserError as error:
        if not any(isinstance(x, Sequence) for x in factories):
            raise
        raise type(error)(f"layer {index}: {error}") from None


def attach_positions(
    layer: AttentionSublayer,
    factories: Sequence[PositionFactory],
    shared: dict[tuple[Any, ...], PositionalEncoding],
) -> None:
    """Attach encodings to the attention of a layer: one that layers share, or its own.

    `shared` holds the encodings of earlier layers by their factory and sizes, and gets new ones.
    """
    of_branches = factories if len(factories) > 1 else [*factories] * len(layer.branches)
    for attention, factory in zip(layer.branches, of_branches, strict=True):
        sizes = attention.position_sizes
        key = (id(factory), *(size for name, size in sizes.items() if name != "layer"))
        encoding = shared.get(key) or factory(**sizes)
        if not isinstance(encoding, PositionalEncoding):
            raise UserError(
                f"the factory of position must build an encoding, got {short_repr(encoding)}."
            )
        is_own = encoding.card.per_layer
        attention.attach_position(encoding, shared=not is_own)
        if not is_own:
            shared[key] = encoding


def refuse_before_some(card: PositionCard) -> None:
    """Refuse an encoding of some layers that acts before all of them."""
    before = tuple(site for site in card.acts if site in BEFORE_ATTENTION)
    if before:
        raise Unsupported(
            f"position={card.name} acts on {join_names(before)}, before all layers, so that it "
            "cannot be that of some. Choose it for all layers, or one that acts inside attention."
        )


def shortest_limit(*limits: int | None) -> int | None:
    """Return the smallest limit, or None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)
