"""The sublayers of a Transformer, each with its residual connection and norm."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.attention.projections import convolve_qkv, projection_convolutions
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.caches import Cache, ConvolutionCache, ParallelCache
from attention_zoo.custom_gradients import rms_norm
from attention_zoo.errors import UserError, check_dropout, check_positive, short_repr
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.models.activations import ACTIVATIONS, GATED_ACTIVATIONS, Activation
from attention_zoo.models.dropout import Dropout
from attention_zoo.zoo import Role

AttentionFactory = Callable[..., Attention]
Norm = Literal["layer", "layer_no_bias", "rms"]
NormOrder = Literal["pre", "post", "sandwich", "res_post"]


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What all parts of a model share.

    Args:
        dim: width of the residual stream.
        ffn_dim: width of the feed-forward's hidden layer; None: layers without a feed-forward, as
            in Mamba.
        activation: of the feed-forward: `relu` (Vaswani et al. 2017), `gelu` (Hendrycks and Gimpel
            2016), `silu` (Elfwing et al. 2017), `relu_squared` (So et al. 2021); or one with a
            gate: `swiglu` (Shazeer 2020), `geglu_tanh` (likewise, with the GELU of Gemma),
            `clamped_swiglu` (gpt-oss).
        ffn_bias: whether the two layers of the feed-forward have biases.
        parallel_feed_forward: whether attention and feed-forward read the same norm, and their sum
            is added to the residual stream (Wang and Komatsuzaki 2021, GPT-J).
        norm: `layer` (Ba et al. 2016), `layer_no_bias`, the same without a bias, or `rms` (Zhang
            and Sennrich 2019).
        norm_order: `pre`, x + f(norm(x)); `post`, norm(x + f(x)); `sandwich`,
            x + norm(f(norm(x))) (Ding et al. 2021, Gemma 2); or `res_post`, x + norm(f(x)) (Liu et
            al. 2022, OLMo 2).
        norm_epsilon: what norms add to the variance; default: 1e-6 for `rms`, 1e-5 for the others.
        input_convolution: kernel size K of a short causal convolution of what self-attention reads,
            x_t + Σ_{l < K} w_l ⊙ x_{t−l} (Allen-Zhu 2025, arXiv 2512.17351, Canon-A); default:
            none.
        qkv_convolution: kernel size of the same for the projected queries, keys and values of
            self-attention (likewise, Canon-B), before norms and rotations; default: none.
        value_residual: whether every layer but the first mixes the projected values V₁ of the first
            into its own, λ₁ V₁ + λ₂ V, with λ learned for each layer, from ½ on (Zhou et al. 2024,
            arXiv 2410.17897, Learnable-ResFormer). Cross-attention mixes none.
        dropout: on every sublayer's output and on the embeddings.
        scale_embedding: whether embeddings are multiplied by √dim (Vaswani et al. 2017, §3.4).
        logit_scale: by which logits are multiplied.
        logit_cap: bound of the logits, cap·tanh(logits / cap) (Gemma 2); default: none.
        logit_bias: whether the output has a bias for each token (Marian).
    """

    dim: int
    ffn_dim: int | None
    activation: Activation = "gelu"
    ffn_bias: bool = True
    parallel_feed_forward: bool = False
    norm: Norm = "layer"
    norm_order: NormOrder = "pre"
    norm_epsilon: float | None = None
    input_convolution: int | None = None
    qkv_convolution: int | None = None
    value_residual: bool = False
    dropout: float = 0.1
    scale_embedding: bool = True
    logit_scale: float = 1.0
    logit_cap: float | None = None
    logit_bias: bool = False

    def __post_init__(self) -> None:
        choices = {"activation": Activation, "norm": Norm, "norm_order": NormOrder}
        for name, literal in choices.items():
            value, legal = getattr(self, name), get_args(literal)
            if value not in legal:
                raise UserError(f"{name} must be one of {', '.join(legal)}, got {value!r}.")
        check_dropout(self.dropout)
        check_positive(dim=self.dim, **({} if self.ffn_dim is None else {"ffn_dim": self.ffn_dim}))
        for name in ("input_convolution", "qkv_convolution"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        for name in ("norm_epsilon", "logit_scale", "logit_cap"):
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise UserError(f"{name} must be above 0, got {value}.")

    def create_norm(self) -> nn.Module:
        """Create a norm of the residual stream."""
        if self.norm == "rms":
            return RMSNorm(self.dim, eps=self.norm_epsilon or 1e-6)
        bias = self.norm == "layer"
        return nn.LayerNorm(self.dim, eps=self.norm_epsilon or 1e-5, bias=bias)

    def create_final_norm(self) -> nn.Module:
        """Create the norm at the end of a stack, where its layers leave the stream as it is."""
        return nn.Identity() if self.norm_order == "post" else self.create_norm()


class RMSNorm(nn.RMSNorm):
    """The norm of the residual stream, with a gradient that takes few passes on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


def check_factory(factory: object, name: str) -> None:
    """Refuse what is not a factory, such as a module, whose weights layers would share."""
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UserError(
            f"{name} must be a factory, as functools.partial(create_{name}, name, …), got "
            f"{short_repr(factory) if isinstance(factory, str) else type(factory).__name__}."
        )
    sizes: tuple[str, ...] = ("dim", "role", "layer")
    if name == "position":
        sizes += ("heads", "head_dim")
    try:
        inspect.signature(factory).bind(**dict.fromkeys(sizes))
    except TypeError as error:
        raise UserError(
            f"{name} must be a factory that takes {', '.join(sizes)} by name: {error}."
        ) from None
    except ValueError:
        return  # It has no signature, as some that are written in C.


class Sublayer(nn.Module):
    """A function f with norm, dropout and residual connection, in the order of `norm_order`."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.norm_order = options.norm_order
        self.norm = options.create_norm()
        if self.norm_order == "sandwich":
            self.output_norm: nn.Module = options.create_norm()
        self.dropout = Dropout(options.dropout)

    def residual(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply f with norm, dropout and residual connection."""
        match self.norm_order:
            case "pre":
                return x + self.drop(f(self.norm(x)))
            case "post":
                return self.norm(x + self.drop(f(x)))
            case "sandwich":
                return x + self.drop(self.output_norm(f(self.norm(x))))
            case "res_post":
                return x + self.drop(self.norm(f(x)))

    def drop(self, x: Tensor) -> Tensor:
        """Apply dropout where it has an effect: a call takes as long as a small product."""
        dropout = self.dropout
        is_idle = isinstance(dropout, nn.Dropout) and not (dropout.training and dropout.p)
        return x if is_idle else dropout(x)


class ParallelAttention(nn.Module):
    """Several mechanisms side by side: the sum of their outputs (Zuo et al. 2025, Falcon-H1).

    Each has its own projections of the same inputs, its own encoding and its own cache.
    """

    def __init__(self, branches: Sequence[Attention]) -> None:
        super().__init__()
        self.branches: Sequence[Attention] = cast(Any, nn.ModuleList(branches))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        cache: ParallelCache | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Attend as `Attention.forward` does, with the same inputs: [b q d] -> [b q d]."""
        caches = repeat(None) if cache is None else cache.branches
        outputs = [
            branch(x, context, cache=part, **inputs)
            for branch, part in zip(self.branches, caches, strict=False)
        ]
        return torch.stack(outputs).sum(0)

    def new_cache(self) -> ParallelCache:
        """Create an empty cache for decoding, or raise Unsupported if a branch has none."""
        return ParallelCache([branch.new_cache() for branch in self.branches])


class AttentionSublayer(Sublayer):
    """Any mechanism of the zoo in one role, or several side by side, with residual and norm.

    Args:
        attention: factory, called with `dim`, `role` and `layer`; or a tuple of those of mechanisms
            that stand side by side.
        options: of the blocks.
        role: of the attention.
        layer: index of the layer in its stack, from 0.
    """

    def __init__(
        self,
        attention: AttentionFactory | tuple[AttentionFactory, ...],
        options: BlockOptions,
        *,
        role: Role,
        layer: int,
    ) -> None:
        super().__init__(options)
        self.role = role
        factories = attention if isinstance(attention, tuple) else (attention,)
        branches = [build_attention(x, options.dim, role, layer) for x in factories]
        self.attention: Attention | ParallelAttention = (
            branches[0] if len(branches) == 1 else ParallelAttention(branches)
        )
        self.convolution = None
        if options.input_convolution is not None and role != "cross":
            self.convolution = ShortConvolution(options.dim, options.input_convolution)
        if options.qkv_convolution is not None and role != "cross":
            for branch in branches:
                convolve_qkv(branch, options.qkv_convolution)

    @property
    def branches(self) -> list[Attention]:
        """Return the mechanisms of the layer: one, or those side by side."""
        if isinstance(self.attention, Attention):
            return [self.attention]
        return [*self.attention.branches]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        parallel: Callable[[Tensor], Tensor] | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Attend as `Attention.forward` does, with the same inputs: [b q d] -> [b q d].

        The output of a function in `parallel`, which reads what attention reads, is added to its.
        """

        def attend(y: Tensor) -> Tensor:
            attended = self.attend(y, context, **inputs)
            return attended if parallel is None else attended + parallel(y)

        return self.residual(x, attend)

    def attend(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask = Mask(),
        cache: Cache | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Attend from what the convolution makes of the inputs, if there is one."""
        if self.convolution is not None:
            span, state = TokenSpan(mask), None
            if cache is not None:
                assert isinstance(cache, ConvolutionCache)
                span, state = TokenSpan(mask, cache.length), cache.states.get("inputs")
            mixed, state = self.convolution(x, span, state)
            x = x + mixed
            if cache is not None:
                assert isinstance(cache, ConvolutionCache)
                cache.states = {"inputs": state}
                cache.length += x.shape[1]
                cache = cache.attention
        return self.attention(x, context, mask=mask, cache=cache, **inputs)

    def new_cache(self) -> Cache | None:
        """Create an empty cache for decoding; None if there is nothing to keep.

        An attention that reads the keys and values of another layer keeps none of its own.
        """
        first = self.branches[0]
        keeps_none = first.reads_kv and not projection_convolutions(first)
        cache = None if keeps_none else self.attention.new_cache()
        return cache if self.convolution is None else ConvolutionCache(cache)

    def decode_state(self, tokens: int) -> int:
        """Return how many numbers the cache keeps of so many tokens, positions not counted."""
        convolutions = [part for part in (self.convolution,) if part is not None]
        for branch in self.branches:
            convolutions += projection_convolutions(branch)
        state = sum(branch.decode_state(tokens) for branch in self.branches)
        return state + sum(part.state_size for part in convolutions)


def build_attention(factory: AttentionFactory, dim: int, role: Role, layer: int) -> Attention:
    """Build the attention of a layer by its factory, or refuse what that returns."""
    check_factory(factory, "attention")
    attention = factory(dim=dim, role=role, layer=layer)
    if not isinstance(attention, Attention) or attention.role != role:
        raise UserError(
            f"the factory of attention must build {role} attention, as it is asked to, got "
            f"{short_repr(getattr(attention, 'role', attention))}."
        )
    return attention


class FeedForward(Sublayer):
    """W₂ σ(W₁ x), or W₂ (σ(W₁ x) ⊙ W₃ x) for an activation with a gate, with residual and norm.

    In parallel to attention it has no norm of its own.
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        assert options.ffn_dim is not None
        if options.parallel_feed_forward:
            self.norm = self.output_norm = nn.Identity()
        self.activation = options.activation
        width = options.ffn_dim * (2 if self.activation in GATED_ACTIVATIONS else 1)
        self.expand = nn.Linear(options.dim, width, bias=options.ffn_bias)
        self.contract = nn.Linear(options.ffn_dim, options.dim, bias=options.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, self.transform)

    def transform(self, x: Tensor) -> Tensor:
        """Compute the feed-forward of x [b t d] alone."""
        expanded = self.expand(x)
        if self.activation in GATED_ACTIVATIONS:
            return self.contract(GATED_ACTIVATIONS[self.activation](*expanded.chunk(2, dim=-1)))
        return self.contract(ACTIVATIONS[self.activation](expanded))
