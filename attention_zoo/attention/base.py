"""The contract that every attention mechanism keeps."""

import math
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import Cache
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.masks import Mask
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import AttentionCard, Role, check_pair, join_names


class Attention(nn.Module):
    """Queries look up values by keys: projections to and from heads, and the contract.

    Args:
        dim: width of the inputs and of the output.
        role: `causal` or `global` self-attention, or `cross`.
        heads: number of query heads.
        kv_heads: number of key/value heads, each shared by heads / kv_heads queries; all, if not
            given.
        head_dim: width of a head; dim / heads, if not given.
        bias: whether the projections have one.
        layer: place in the stack of layers, from 0.

    Raises:
        Unsupported: a role that the card does not declare.
        UserError: sizes that do not fit together.
    """

    card: ClassVar[AttentionCard]
    # Options of a base class that this one decides itself.
    decided_options: ClassVar[tuple[str, ...]] = ()
    # Of the mechanism's own, in keys; it narrows every mask.
    window: int | None = None
    # The most tokens that it can take, if it has a limit.
    max_length: int | None = None
    # A loss of the mechanism's own, of the last forward pass: the mean over its real tokens. Set in
    # training only, by those that have one; `take_auxiliary_loss` collects it.
    auxiliary_loss: Tensor | None = None

    def __init__(
        self,
        *,
        dim: int,
        role: Role,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        layer: int = 0,
    ) -> None:
        super().__init__()
        check_pair(self.card, role)
        kv_heads = heads if kv_heads is None else kv_heads
        if min(heads, kv_heads) < 1 or heads % kv_heads:
            raise UserError(
                f"heads must be a multiple of kv_heads, got heads={heads}, kv_heads={kv_heads}."
            )
        if head_dim is None and dim % heads:
            raise UserError(f"dim must be a multiple of heads, got dim={dim}, heads={heads}.")
        self.dim = dim
        self.role = role
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.layer = layer
        self.create_projections(bias)
        self.position: PositionalEncoding
        self.attach_position(
            PositionalEncoding(dim=dim, heads=heads, head_dim=self.head_dim, role=role)
        )

    def create_projections(self, bias: bool) -> None:
        """Make the projections; a mechanism that has others, or none, overrides this."""
        self.query = nn.Linear(self.dim, self.heads * self.head_dim, bias=bias)
        self.key = nn.Linear(self.dim, self.kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(self.dim, self.kv_heads * self.head_dim, bias=bias)
        self.output = nn.Linear(self.heads * self.head_dim, self.dim, bias=bias)

    def __getstate__(self) -> dict[str, Any]:
        """Without the loss: it belongs to a pass, and its graph can be neither copied nor saved."""
        return {name: part for name, part in vars(self).items() if name != "auxiliary_loss"}

    @property
    def position_sizes(self) -> dict[str, Any]:
        """What an encoding of this attention must know to be built."""
        return {
            "dim": self.dim,
            "heads": self.heads,
            "head_dim": self.position_dim,
            "role": self.role,
            "layer": self.layer,
        }

    @property
    def position_dim(self) -> int:
        """Width of the part of a head that an encoding may turn."""
        return self.head_dim

    @property
    def sizes(self) -> dict[str, int]:
        """The letters of the card's `decode_state`: all but t, the number of tokens."""
        return {"d": self.dim, "h": self.heads, "g": self.kv_heads, "c": self.head_dim}

    def decode_state(self, tokens: int) -> int:
        """How many numbers decoding keeps of a sequence of so many tokens, by the card's formula.

        The positions of tokens, which are whole numbers, are not counted.
        """
        formula = self.card.decode_state.replace("·", "*")
        functions = {"min": min, "max": max, "ceil": math.ceil, "log2": math.log2}
        return eval(formula, {"__builtins__": {}}, {**functions, **self.sizes, "t": tokens})

    def attach_position(self, position: PositionalEncoding) -> None:
        """Let this encoding act on heads and scores.

        It stays its owner's: a model shares one over its layers, so it is held here without being
        registered as a submodule.

        Raises:
            Unsupported: the card does not take it.
        """
        check_pair(self.card, self.role, position.card)
        object.__setattr__(self, "position", position)

    def attach_position_own(self, encoding: PositionalEncoding) -> None:
        """Use an encoding that is this attention's own: it becomes a part of it."""
        self.attach_position(encoding)
        self.encoding = encoding

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: [b q d], where the queries come from; the keys too, if there is no context.
            context: [b k d], what cross-attention looks at. With a cache, it is read the first time
                only.
            mask: who may attend to whom, over all keys, those in the cache included. The role
                `causal` adds its own part.
            positions: [b|1 q] places of the queries; counted on from the cache, if not given.
            cache: from `new_cache`; holds the tokens before x, and takes x in.

        Returns:
            [b q d]; zeros, before the output projection, for a query that may attend to nothing.

        Raises:
            Unsupported: a mask that the card does not honour.
            UserError: a context too many or too few, or a mask of another length.
        """
        raise NotImplementedError

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """The weights [b h q k] that `forward` gives, or implies, to the values:

        forward(x) = finish(attention_map(x) @ values(x), x)

        An encoding that acts on values adds to the product what it gives to the weights.
        """
        raise NotImplementedError

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """[b h k c], what the weights of `attention_map` are given to."""
        _, v = self.project_key_value(x if context is None else context)
        return repeat_heads(v, self.heads)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """The output [b q d] of the weighted sums of values [b h q c], for queries from x."""
        return self.project_output(attended)

    def is_visible(self, query: int, key: int, length: int) -> bool:
        """Whether the mechanism's own pattern lets the query at a place see the key at another.

        Places are counted from the first real token of a sequence, whose last one stands at
        length - 1. So padding at an end, and what else is packed into a row, changes no pattern.
        It is for the tests, beside `naive`.
        """
        return True

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """`forward` as the paper writes it, plain and slow, for the tests.

        `visible` is [b q k]: the mask with the role's part, the mechanism's window and `is_visible`.
        """
        raise NotImplementedError

    def new_cache(self) -> Cache:
        """An empty cache for decoding.

        Raises:
            Unsupported: the mechanism has no cached decoding.
        """
        if not self.card.cache:
            raise Unsupported(f"{self.card.name} has no cached decoding.")
        if self.role == "global":
            raise Unsupported(
                "global attention sees the future: it cannot be decoded with a cache."
            )
        return self.empty_cache()

    def empty_cache(self) -> Cache:
        """What `new_cache` gives once it may."""
        raise NotImplementedError

    def effective_mask(
        self, mask: Mask, x: Tensor, context: Tensor | None, cache: Cache | None = None
    ) -> Mask:
        """The mask with the role's and the mechanism's own part, if all of it can be honoured."""
        cross = self.role == "cross"
        if (context is not None) != cross:
            raise UserError(f"{self.role} attention {'needs a' if cross else 'takes no'} context.")
        mask = mask.intersect(causal=self.role == "causal", window=self.window)
        unexpected = ("causal", "window") if cross else ("query_segment_ids",)
        legal = [name for name in self.card.masks if name not in unexpected]
        refused = tuple(name for name in mask.names if name not in legal)
        if refused:
            raise Unsupported(
                f"{self.card.name} as {self.role} attention cannot honour the mask "
                f"{join_names(refused)}; it honours: {', '.join(legal)}."
            )
        if cross and mask.segment_ids is not None and mask.query_segment_ids is None:
            raise UserError("segments in cross attention need query_segments beside them.")
        held = 0 if cache is None else cache.length
        keys = held + x.shape[1] if context is None else held or context.shape[1]
        for name, length in (
            ("key_mask", keys),
            ("segment_ids", keys),
            ("query_segment_ids", x.shape[1]),
        ):
            part = getattr(mask, name)
            if part is not None and part.shape[1] != length:
                raise UserError(
                    f"the mask's {name} must have a column for each of {length} tokens, "
                    f"got {part.shape[1]}."
                )
        if self.max_length is not None and keys > self.max_length:
            raise UserError(
                f"{self.card.name} has max_length={self.max_length}, got {keys} tokens."
            )
        return mask

    def project_query(self, x: Tensor) -> Tensor:
        """[b q d] -> [b h q c]."""
        return rearrange(self.query(x), "b q (h c) -> b h q c", h=self.heads)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """[b k d] -> [b g k c], [b g k c]."""
        return (
            rearrange(self.key(source), "b k (g c) -> b g k c", g=self.kv_heads),
            rearrange(self.value(source), "b k (g c) -> b g k c", g=self.kv_heads),
        )

    def project_output(self, heads: Tensor) -> Tensor:
        """[b h q c] -> [b q d]."""
        return self.output(rearrange(heads, "b h q c -> b q (h c)"))


def resolve_positions(x: Tensor, positions: Tensor | None, cache: Cache | None) -> Tensor:
    """[b|1 q]: the given positions, or those that follow the cache's tokens."""
    if positions is not None:
        return positions
    start = 0 if cache is None else cache.length
    return torch.arange(start, start + x.shape[1], device=x.device)[None, :]


def take_auxiliary_loss(model: nn.Module) -> Tensor | None:
    """The sum of the auxiliary losses of a model's attention, which keeps none of them.

    Each is a mean over the tokens of the last pass; None where no mechanism has one.
    """
    losses = []
    for part in model.modules():
        if isinstance(part, Attention) and part.auxiliary_loss is not None:
            losses.append(part.auxiliary_loss)
            part.auxiliary_loss = None
    return torch.stack(losses).sum() if losses else None
