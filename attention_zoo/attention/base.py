"""The contract that every attention mechanism keeps."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_zoo.attention.inputs import is_empty, resolve_positions
from attention_zoo.attention.projections import FirstValues, extend_cache, start_pass
from attention_zoo.attention.sharing import SharedKV, cannot_share, check_shared
from attention_zoo.attention.unpadding import find_unpadding
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import Cache, check_cache
from attention_zoo.errors import Unsupported, UserError, check_not_negative, check_positive
from attention_zoo.masks import Mask
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tensor_checks import (
    check_device,
    check_features,
    check_matches_weights,
    describe,
)
from attention_zoo.zoo import AttentionCard, Role, check_acts_inside, check_pair, join_names


class Attention(nn.Module):
    """Queries look up values by keys: projections to and from heads, and the contract.

    A mechanism implements `attend_tokens`, `compute_map` and `naive`.

    Args:
        dim: width of the inputs and of the output.
        role: `causal` or `global` self-attention, or `cross`.
        heads: number of query heads.
        kv_heads: number of key/value heads, each shared by heads / kv_heads query heads; default:
            heads.
        head_dim: width of a head; default: dim / heads.
        bias: whether the projections have a bias.
        layer: index of the layer in its stack, from 0.

    Raises:
        Unsupported: a role that the card does not declare.
        UserError: sizes that do not fit together.
    """

    card: ClassVar[AttentionCard]
    # Options of a base class that this class decides itself.
    decided_options: ClassVar[tuple[str, ...]] = ()
    # Names of own parameters that are gains or biases, whatever their shape: without weight decay.
    no_decay: ClassVar[tuple[str, ...]] = ()
    # The linear maps, where it has them, of each token by itself to queries, keys and values. A
    # model's options may extend them, see `projections`.
    token_projections: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    # Whether it convolves what these project itself.
    convolves_qkv: ClassVar[bool] = False
    # Whether it reads keys and values that another layer projects, see `read_kv_of`.
    reads_kv: bool = False
    # Whether its pattern counts columns: it gets rows without padding between real tokens, and a
    # query at padding sees nothing. So it is, for every mechanism, in a window.
    counts_columns: ClassVar[bool] = False
    # The mechanism's own window, in keys; it narrows every mask.
    window: int | None = None
    # The longest sequence that it can take, if it has a limit.
    max_length: int | None = None
    # A loss of the mechanism itself in the last forward pass: the mean over its real tokens. Set in
    # training only, by the mechanisms that have one; `take_auxiliary_loss` collects it.
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
        check_positive(dim=dim, heads=heads, kv_heads=kv_heads)
        check_not_negative(layer=layer)
        if head_dim is not None:
            check_positive(head_dim=head_dim)
        if heads % kv_heads:
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
        neutral = PositionalEncoding(dim=dim, heads=heads, head_dim=self.head_dim, role=role)
        self.attach_position(neutral, shared=True)

    def create_projections(self, bias: bool) -> None:
        """Create the projections; a mechanism that has others, or none, overrides this."""
        self.query = nn.Linear(self.dim, self.heads * self.head_dim, bias=bias)
        self.key = nn.Linear(self.dim, self.kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(self.dim, self.kv_heads * self.head_dim, bias=bias)
        self.output = nn.Linear(self.heads * self.head_dim, self.dim, bias=bias)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the loss, whose graph can be neither copied nor saved."""
        return {name: part for name, part in vars(self).items() if name != "auxiliary_loss"}

    @property
    def position(self) -> PositionalEncoding:
        """Return the positional encoding that acts on this attention."""
        return self._position[0]

    @property
    def position_sizes(self) -> dict[str, Any]:
        """Return the sizes that an encoding of this attention is built with."""
        return {
            "dim": self.dim,
            "heads": self.heads,
            "head_dim": self.position_dim,
            "role": self.role,
            "layer": self.layer,
        }

    @property
    def position_dim(self) -> int:
        """Return the width of the part of a head that an encoding may rotate."""
        return self.head_dim

    def attach_position(self, encoding: PositionalEncoding, *, shared: bool = False) -> None:
        """Let an encoding act on this attention.

        Args:
            encoding: built with `position_sizes`. One that a layer has of its own, as its card
                says, serves one attention.
            shared: whether a model owns the encoding and applies the part of it that acts before
                the layers. Otherwise it becomes a submodule, which is trained and saved with the
                attention.

        Raises:
            Unsupported: an encoding that the card does not take, or one that would have no effect.
            UserError: an encoding of other sizes, or one that belongs to another layer.
        """
        if not isinstance(encoding, PositionalEncoding):
            raise UserError(
                "attach_position takes an encoding, got "
                f"{describe(encoding)}. Build one by create_position(…, **position_sizes)."
            )
        check_pair(self.card, self.role, encoding.card)
        if not shared:
            check_acts_inside(encoding.card)
        self.check_position(encoding, shared=shared)
        encoding.is_attached = not shared
        # In a tuple, so that an encoding that many layers share is no submodule of each.
        self._position = (encoding,)
        self.encoding = None if shared else encoding

    def check_position(self, encoding: PositionalEncoding, *, shared: bool) -> None:
        """Refuse an encoding of other sizes, and one of a layer's own that has a layer already."""
        if not encoding.card.acts:
            return
        for name in ("role", "dim", "heads", "head_dim"):
            ours, theirs = self.position_sizes[name], getattr(encoding, name)
            if ours != theirs:
                raise UserError(
                    f"position={encoding.card.name} is built for {name}={theirs}, but the "
                    f"attention needs {name}={ours}. Build it with position_sizes of the attention."
                )
        taken = shared or (encoding.is_attached and encoding is not self.encoding)
        if encoding.card.per_layer and taken:
            raise UserError(
                f"each layer has a position={encoding.card.name} of its own, and this one "
                f"{'would be shared' if shared else 'belongs to another attention'}. Build one for "
                "each attention."
            )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
        shared: SharedKV | None = None,
        first_values: FirstValues | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: [b q d], source of the queries; also of keys and values, if there is no context.
            context: [b k d], source of keys and values in cross-attention. With a cache, it is
                read the first time only.
            mask: which keys a query may attend to, over all keys, cached ones included, at which
                padding stays as it was. The role `causal` adds its own part.
            positions: [b|1 q] positions of the queries; default: they continue those of the cache.
            cache: from `new_cache`; holds the tokens before x, and takes x in.
            shared: where keys and values are left for other layers, or, by an attention that reads
                those of another one, are found; one for each pass. The latter has no cache.
            first_values: where the first layer leaves its values, and later ones that mix them into
                theirs find them; one for each pass.

        Returns:
            [b q d]; zeros, before the output projection, for a query that may attend to nothing.

        Raises:
            Unsupported: a mask that the card does not honour.
            UserError: a context that is missing or not wanted, or inputs, a mask, positions or a
                cache of another shape, type, device or attention.
        """
        past = shared if self.reads_kv else cache
        mask = self.effective_mask(mask, x, context, past)
        positions = resolve_positions(x, positions, None if self.role == "cross" else past)
        if is_empty(x, context):
            if shared is not None:
                shared.length = 0
            forward = partial(self.forward, shared=shared, first_values=first_values)
            return self.apply_to_hidden_token(forward, x, context)[: len(x), : x.shape[1]]
        rows = find_unpadding(self, mask, cache, shared)
        with start_pass(self, rows, cache, first_values) as cache:
            inputs = rows.arrange(x), context, rows.arrange_mask(), rows.arrange(positions), cache
            if shared is None:
                attended = self.attend_tokens(*inputs)
            else:
                attended = self.attend_shared(*inputs, shared)
        return self.project_output(rows.restore_queries(attended), x)

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        """Compute the weighted sums of values [b h q c]; the arguments are those of `forward`.

        The mask is the effective one, and the positions are resolved.
        """
        raise NotImplementedError

    def attend_shared(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask,
        positions: Tensor,
        cache: Cache | None,
        shared: SharedKV,
    ) -> Tensor:
        """Compute what `attend_tokens` computes, and leave or find keys and values in `shared`."""
        raise cannot_share(self.card.name)

    def read_kv_of(self, source: "Attention") -> None:
        """Read the keys and values of another layer's attention, and drop the own projections.

        Raises:
            Unsupported: a mechanism without keys and values, or one that has others than `source`.
        """
        raise cannot_share(self.card.name)

    @property
    def num_maps(self) -> int:
        """Return the number of maps that `attention_map` returns: of most mechanisms, the heads."""
        return self.heads

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        shared: SharedKV | None = None,
        first_values: FirstValues | None = None,
    ) -> Tensor:
        """Return the weights [b h q k] that `forward` gives, or implies, to the values.

            forward(x) = project_output(apply_weights(attention_map(x), values(x)), x)

        An encoding that acts on values adds its own part to the weighted sums.
        """
        mask = self.effective_mask(mask, x, context, shared if self.reads_kv else None)
        positions = resolve_positions(x, positions)
        source = x if context is None else context
        if is_empty(x, context):
            attention_map = partial(self.attention_map, shared=shared, first_values=first_values)
            weights = self.apply_to_hidden_token(attention_map, x, context)
            return weights[: len(x), :, : x.shape[1], : source.shape[1]]
        rows = find_unpadding(self, mask, shared=shared)
        x, mask, positions = rows.arrange(x), rows.arrange_mask(), rows.arrange(positions)
        with start_pass(self, rows, first_values=first_values):
            if self.reads_kv:
                weights = self.compute_shared_map(x, mask, positions, shared)
            else:
                source = x if context is None else context
                weights = self.compute_map(x, source, mask, positions)
        return rows.restore_queries(weights, 3)

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        first_values: FirstValues | None = None,
    ) -> Tensor:
        """Return the values [b h k c] that the weights of `attention_map` apply to."""
        if self.reads_kv:
            raise Unsupported(
                f"the attention of layer {self.layer} has no values of its own: it reads those of "
                "another layer. Ask that one."
            )
        mask = self.effective_mask(mask, x, context)
        positions = resolve_positions(x, positions)
        source = x if context is None else context
        if is_empty(x, context):
            of_token = partial(self.values, first_values=first_values)
            values = self.apply_to_hidden_token(of_token, x, context)
            return values[: len(x), :, : source.shape[1]]
        rows = find_unpadding(self, mask)
        with start_pass(self, rows, first_values=first_values):
            values = self.compute_values(
                rows.arrange(source), rows.arrange_mask(), rows.arrange(positions)
            )
        return rows.restore(values, 2)

    def apply_to_hidden_token(
        self, method: Callable[..., Tensor], x: Tensor, context: Tensor | None
    ) -> Tensor:
        """Call a method with a token that no query sees where there is no token.

        So the result has the type, and the parameters have the gradients, of any other; the caller
        cuts the token off. A cache takes in nothing.
        """
        x, *contexts = (
            pad(part, (0, 0, 0, int(not part.shape[1]), 0, int(not len(part))))
            for part in (x, context)
            if part is not None
        )
        source = contexts[0] if contexts else x
        hidden = torch.zeros(source.shape[:2], dtype=torch.bool, device=x.device)
        mask = Mask(key_mask=hidden if "key_mask" in self.card.masks else None)
        return method(x, *contexts, mask=mask)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute `attention_map` for queries from x and keys from the source."""
        raise NotImplementedError

    def compute_shared_map(
        self, x: Tensor, mask: Mask, positions: Tensor, shared: SharedKV | None
    ) -> Tensor:
        """Compute `attention_map` for queries from x and the keys that another layer projected."""
        raise cannot_share(self.card.name)

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute `values`."""
        return repeat_heads(self.project_key_value(source)[1], self.heads)

    def apply_weights(self, weights: Tensor, values: Tensor) -> Tensor:
        """Combine weights [b h q k] and values [b h k c] to [b h q c]."""
        return weights @ values

    def is_visible(self, query: int, key: int, length: int) -> bool:
        """Return whether the mechanism's own pattern lets a query see a key.

        Indices count the real tokens of a sequence, from 0 to length - 1. So neither padding nor
        other sequences in the row change a pattern.
        """
        return True

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute `forward` as the paper writes it, slowly, for the tests.

        It works from the module's weights alone and calls nothing that `forward` calls.

        Args:
            x: [b q d], source of the queries.
            source: [b k d], source of keys and values: x itself, or the context.
            visible: [b q k] bool: the mask with the role's part, the mechanism's window and its
                pattern.
            positions: [b|1 q], positions of the queries; in self-attention also of the keys.

        Returns:
            [b q d].
        """
        raise NotImplementedError

    def decode_state(self, tokens: int) -> int:
        """Return how many numbers decoding keeps for a sequence of so many tokens.

        The positions of tokens, which are integers, are not counted.
        """
        return 2 * tokens * self.kv_heads * self.head_dim

    def new_cache(self) -> Cache:
        """Create an empty cache for decoding.

        Raises:
            Unsupported: the mechanism has no cached decoding.
        """
        if not self.card.cache:
            raise Unsupported(f"{self.card.name} has no cached decoding.")
        if self.role == "global":
            raise Unsupported(
                "global attention sees the future: it cannot be decoded with a cache."
            )
        cache = extend_cache(self, self.create_cache())
        cache.owner = id(self)
        return cache

    def create_cache(self) -> Cache:
        """Create the cache of a mechanism that can be decoded."""
        raise NotImplementedError

    def effective_mask(
        self, mask: Mask, x: Tensor, context: Tensor | None, cache: Cache | SharedKV | None = None
    ) -> Mask:
        """Return the mask with the role's and the mechanism's own part, if all can be honoured."""
        cross = self.role == "cross"
        if (context is not None) != cross:
            raise UserError(f"{self.role} attention {'needs a' if cross else 'takes no'} context.")
        if not torch.compiler.is_compiling():
            self.check_inputs(x, context, mask, cache)
        mask = mask.intersect(causal=self.role == "causal", window=self.window)
        unfit = ("causal", "window") if cross else ("query_segment_ids",)
        legal = [name for name in self.card.masks if name not in unfit]
        refused = tuple(name for name in mask.names if name not in legal)
        if refused:
            raise Unsupported(
                f"{self.card.name} as {self.role} attention cannot honour the mask "
                f"{join_names(refused)}; it honours: {', '.join(legal)}."
            )
        if cross and mask.segment_ids is not None and mask.query_segment_ids is None:
            raise UserError("segment_ids in cross-attention need query_segment_ids as well.")
        cached = 0 if cache is None else cache.length
        keys = cached + x.shape[1] if context is None else cached or context.shape[1]
        mask.check_shape(batch=len(x), queries=x.shape[1], keys=keys)
        for name, part in mask.tensors.items():
            check_device(part, f"the mask's {name}", x)
        if self.max_length is not None and keys > self.max_length:
            raise UserError(
                f"{self.card.name} has max_length={self.max_length}, got {keys} tokens."
            )
        return mask

    def check_inputs(
        self, x: Tensor, context: Tensor | None, mask: Mask, cache: Cache | SharedKV | None
    ) -> None:
        """Refuse inputs that fit neither this attention nor one another."""
        for name, part in {"x": x, **({} if context is None else {"context": context})}.items():
            check_features(part, name, self.dim)
            check_matches_weights(part, name, self)
        if context is not None and len(context) != len(x):
            raise UserError(
                f"x and context must have as many rows, got {len(x)} and {len(context)}."
            )
        if not isinstance(mask, Mask):
            raise UserError(f"mask must be a Mask, as Mask(key_mask=…), got {describe(mask)}.")
        if self.reads_kv:
            check_shared(cache, self.layer)
        elif cache is not None:
            check_cache(cache, self, len(x))

    def project_query(self, x: Tensor) -> Tensor:
        """Project inputs [b q d] to queries [b h q c]."""
        return split_heads(self.query(x), self.heads)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project inputs [b k d] to keys and values [b g k c]."""
        return (
            split_heads(self.key(source), self.kv_heads),
            split_heads(self.value(source), self.kv_heads),
        )

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        """Project weighted sums of values [b h q c], of queries from x, to outputs [b q d]."""
        return self.output(attended.transpose(1, 2).flatten(2))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split features into heads: [b t (h c)] -> [b h t c]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def take_auxiliary_loss(model: nn.Module) -> Tensor | None:
    """Return the sum of the auxiliary losses of a model's attention, or None, and remove them."""
    losses = []
    for part in model.modules():
        if isinstance(part, Attention) and part.auxiliary_loss is not None:
            losses.append(part.auxiliary_loss)
            # For the backward pass, which may have computed another one until it looks.
            part.auxiliary_loss.was_taken = True  # type: ignore[attr-defined]
            part.auxiliary_loss = None
    return torch.stack(losses).sum() if losses else None
