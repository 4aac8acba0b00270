"""Projections that mix what they project: over neighbouring tokens, and with the first layer.

Both are options of a model, so that every mechanism can be asked with and without. A mechanism
names the maps that they apply to in `token_projections`.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.unpadding import Unpadding
from attention_zoo.caches import Cache, ConvolutionCache
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.masks import TokenSpan
from attention_zoo.tensor_checks import describe

if TYPE_CHECKING:
    from attention_zoo.attention.base import Attention

QKV_NAMES = ("query", "key", "value")


@dataclass
class FirstValues:
    """The values that the first layer of a stack projects in a pass, [b t w] by their label."""

    values: dict[str, Tensor] = field(default_factory=dict)


class TokenProjection(nn.Linear):
    """A projection whose outputs are mixed over tokens, with those of the first layer, or both.

        y_t = W x_t + b,   z_t = y_t + Σ_{l < K} w_l ⊙ y_{t−l},   λ₁ z¹_t + λ₂ z_t

    z¹ is the z of the first layer. The weights w are those of `convolution`, and λ is `mixing`;
    either may be None. It has the weight and the bias of the linear map that it stands for.
    """

    mixing: nn.Parameter | None

    def __init__(self, linear: nn.Linear, label: str) -> None:
        # On the meta device nothing is drawn.
        sizes, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
        super().__init__(*sizes, bias=has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.label = label
        self.convolution: ShortConvolution | None = None
        self.register_parameter("mixing", None)
        self.current_pass: ProjectionPass | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens x [b t d] of the current pass, which the attention starts: [b t w]."""
        y, current = super().forward(x), self.current_pass
        if self.convolution is not None:
            assert current is not None, "the attention starts a pass, in which it projects"
            y = (y + current.convolve(self.label, self.convolution, y)).to(y.dtype)
        if current is None or current.first_values is None:
            return y
        values, rows = current.first_values.values, current.rows
        if self.mixing is not None:
            return self.mixing[0] * rows.arrange(values[self.label]) + self.mixing[1] * y
        # In the order of the caller, as layers may put padding out of the way or not.
        values[self.label] = rows.restore(y, 1)
        return y


class ProjectionPass(AbstractContextManager["Cache | None"]):
    """A pass of an attention, in which its projections find their states and the first layer.

    It starts with the attention's cache, and yields that of the mechanism itself.
    """

    def __init__(
        self,
        projections: list[TokenProjection],
        rows: Unpadding,
        cache: Cache | None,
        first_values: FirstValues | None,
    ) -> None:
        self.projections = projections
        self.rows = rows
        self.span = TokenSpan(rows.arrange_mask(), 0 if cache is None else cache.length)
        self.cache = cache
        self.first_values = first_values
        self.states: dict[str, Tensor] = {}  # after the tokens of the pass
        self.length = 0

    def __enter__(self) -> Cache | None:
        for projection in self.projections:
            projection.current_pass = self
        return self.cache.attention if isinstance(self.cache, ConvolutionCache) else self.cache

    def __exit__(self, error: Any, *_: Any) -> None:
        for projection in self.projections:
            projection.current_pass = None
        if isinstance(self.cache, ConvolutionCache) and error is None:
            self.cache.states = self.states
            self.cache.length += self.length

    def convolve(self, label: str, convolution: ShortConvolution, y: Tensor) -> Tensor:
        """Convolve what a projection made of the tokens [b t w], from the state before them on."""
        state = None
        if isinstance(self.cache, ConvolutionCache):
            state = self.cache.states.get(label)
        mixed, self.states[label] = convolution(y, self.span, state)
        self.length = y.shape[1]
        return mixed


def start_pass(
    attention: "Attention",
    rows: Unpadding,
    cache: Cache | None = None,
    first_values: FirstValues | None = None,
) -> AbstractContextManager[Cache | None]:
    """Start a pass over tokens under the mask of `rows`; it yields the mechanism's own cache.

    Raises:
        UserError: the attention mixes the values of the first layer, which are not there.
    """
    projections = token_projections(attention)
    if not projections:
        return nullcontext(cache)
    needed = [x.label for x in projections if x.mixing is not None]
    found = first_values.values if isinstance(first_values, FirstValues) else {}
    if not all(label in found for label in needed):
        raise UserError(
            f"the attention of layer {attention.layer} mixes the values of the first layer into "
            f"its own, which `first_values` must hold, got {describe(first_values)}. Call the "
            "model, not the layer."
        )
    return ProjectionPass(projections, rows, cache, first_values)


def token_projections(attention: "Attention") -> list[TokenProjection]:
    """Return the projections of an attention that mix what they project."""
    return [x for x in attention.children() if isinstance(x, TokenProjection)]


def projection_convolutions(attention: "Attention") -> list[ShortConvolution]:
    """Return the convolutions of projections, whose states a cache keeps."""
    found = [x.convolution for x in token_projections(attention)]
    return [x for x in found if x is not None]


def extend_cache(attention: "Attention", cache: Cache) -> Cache:
    """Return the mechanism's cache, with room for the states of convolutions, if there are any.

    An attention that reads the keys and values of another layer keeps those states alone.
    """
    if not projection_convolutions(attention):
        return cache
    return ConvolutionCache(None if attention.reads_kv else cache)


def convolve_qkv(attention: "Attention", kernel_size: int) -> None:
    """Convolve the projected queries, keys and values over tokens, by kernels of their own.

    Raises:
        Unsupported: a mechanism that convolves them itself, or one that has not all three.
    """
    name = attention.card.name
    if attention.convolves_qkv:
        raise Unsupported(
            f"{name} convolves its projections itself: set its kernel_size, and leave "
            "qkv_convolution out."
        )
    names = linear_names(attention)
    if not {*QKV_NAMES} <= {*names}:
        raise Unsupported(
            f"{name} does not project each token to a query, a key and a value, which "
            "qkv_convolution convolves. Choose another attention, or input_convolution."
        )
    for projection in names:
        extended = extend_projection(attention, projection)
        extended.convolution = ShortConvolution(extended.out_features, kernel_size)


def mix_values(attention: "Attention", source: "Attention", branch: int = 0) -> None:
    """Mix the values of the source into those of an attention.

    Args:
        attention: of a later layer.
        source: of the first layer.
        branch: index among the mechanisms that stand side by side in the layers.

    Raises:
        Unsupported: a mechanism that does not project values of tokens, or other ones than the
            source.
    """
    for part in (source, attention):
        if "value" not in linear_names(part):
            raise Unsupported(
                f"{part.card.name}, in layer {part.layer}, does not project each token to a value, "
                "which value_residual mixes. Choose another attention, or leave it out."
            )
    for name in linear_names(attention, "value"):
        ours, theirs = (
            getattr(getattr(x, name, None), "out_features", 0) for x in (attention, source)
        )
        if ours != theirs:
            raise Unsupported(
                f"value_residual mixes values of the same width only, got {ours} as that of {name} "
                f"in {attention.card.name}, and {theirs or 'none'} in {source.card.name}, which "
                f"layer {source.layer} has."
            )
        label = f"{branch}.{name}"
        extend_projection(source, name, label)
        extended = extend_projection(attention, name, label)
        extended.mixing = nn.Parameter(torch.full((2,), 0.5))


def linear_names(attention: "Attention", prefix: str = "") -> list[str]:
    """Return the names of the linear maps of tokens that an attention has, with a prefix."""
    return [
        name
        for name in attention.token_projections
        if name.startswith(prefix) and isinstance(getattr(attention, name, None), nn.Linear)
    ]


def extend_projection(
    attention: "Attention", name: str, label: str | None = None
) -> TokenProjection:
    """Let a TokenProjection stand for a linear map of an attention, if it does not yet."""
    linear: Any = attention.get_submodule(name)
    if not isinstance(linear, TokenProjection):
        linear = TokenProjection(linear, name)
        setattr(attention, name, linear)
    linear.label = linear.label if label is None else label
    return linear
