"""The sublayers of a Transformer, each with its residual connection and norm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from attention_zoo.attention.base import Attention
from attention_zoo.caches import ParallelCache
from attention_zoo.errors import UserError, check_dropout, check_positive, short_repr
from attention_zoo.zoo import Role

AttentionFactory = Callable[..., Attention]
Norm = Literal["layer", "rms"]
NormOrder = Literal["pre", "post"]
Activation = Literal["relu", "relu_squared", "gelu", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What all sublayers of a model share.

    Args:
        dim: width of the residual stream.
        ffn_dim: width of the feed-forward's hidden layer.
        activation: of the feed-forward: `relu` (Vaswani et al. 2017), `gelu` (Hendrycks and Gimpel
            2016), `relu_squared` (So et al. 2021), `swiglu` (Shazeer 2020).
        norm: `layer` (Ba et al. 2016) or `rms` (Zhang and Sennrich 2019).
        norm_order: `pre`, x + f(norm(x)), or `post`, norm(x + f(x)).
        dropout: on every sublayer's output and on the embeddings.
    """

    dim: int
    ffn_dim: int
    activation: Activation = "gelu"
    norm: Norm = "layer"
    norm_order: NormOrder = "pre"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        choices = {"activation": Activation, "norm": Norm, "norm_order": NormOrder}
        for name, literal in choices.items():
            value, legal = getattr(self, name), get_args(literal)
            if value not in legal:
                raise UserError(f"{name} must be one of {', '.join(legal)}, got {value!r}.")
        check_dropout(self.dropout)
        check_positive(dim=self.dim, ffn_dim=self.ffn_dim)

    def create_norm(self) -> nn.Module:
        """Create the norm of a sublayer."""
        return nn.LayerNorm(self.dim) if self.norm == "layer" else nn.RMSNorm(self.dim, eps=1e-6)

    def create_final_norm(self) -> nn.Module:
        """Create the norm at the end of a stack, which pre-norm layers need."""
        return self.create_norm() if self.norm_order == "pre" else nn.Identity()


def check_factory(factory: object, name: str) -> None:
    """Refuse what is not a factory, such as a module, whose weights layers would share."""
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UserError(
            f"{name} must be a factory, as functools.partial(create_{name}, name, …), got "
            f"{short_repr(factory) if isinstance(factory, str) else type(factory).__name__}."
        )


class Sublayer(nn.Module):
    """x + dropout(f(norm(x))), or norm(x + dropout(f(x)))."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.pre_norm = options.norm_order == "pre"
        self.norm = options.create_norm()
        self.dropout = nn.Dropout(options.dropout)

    def residual(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply f with norm, dropout and residual connection."""
        if self.pre_norm:
            return x + self.dropout(f(self.norm(x)))
        return self.norm(x + self.dropout(f(x)))


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

    @property
    def branches(self) -> list[Attention]:
        """Return the mechanisms of the layer: one, or those side by side."""
        if isinstance(self.attention, Attention):
            return [self.attention]
        return [*self.attention.branches]

    def forward(self, x: Tensor, context: Tensor | None = None, **inputs: Any) -> Tensor:
        """Attend as `Attention.forward` does, with the same inputs: [b q d] -> [b q d]."""
        return self.residual(x, lambda y: self.attention(y, context, **inputs))


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
    """W₂ σ(W₁ x), or W₂ (silu(W₁ x) ⊙ W₃ x) for `swiglu`, with residual and norm."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        self.activation = options.activation
        gated = options.activation == "swiglu"
        self.expand = nn.Linear(options.dim, options.ffn_dim * (2 if gated else 1))
        self.contract = nn.Linear(options.ffn_dim, options.dim)

    def forward(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        return self.residual(x, lambda y: self.contract(activate(self.expand(y))))


def swiglu(x: Tensor) -> Tensor:
    """Multiply the second half of the channels by the SiLU of the first."""
    gate, x = x.chunk(2, dim=-1)
    return silu(gate) * x


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x).square(),
    "gelu": gelu,
    "swiglu": swiglu,
}
