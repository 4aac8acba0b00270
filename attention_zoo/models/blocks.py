"""The sublayers of a Transformer, each with its residual connection and norm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.caches import Cache
from attention_zoo.errors import UserError, check_dropout
from attention_zoo.masks import Mask
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
        for name, choices in (
            ("activation", Activation),
            ("norm", Norm),
            ("norm_order", NormOrder),
        ):
            value, legal = getattr(self, name), get_args(choices)
            if value not in legal:
                raise UserError(f"{name} must be one of {', '.join(legal)}, got {value!r}.")
        check_dropout(self.dropout)
        if min(self.dim, self.ffn_dim) < 1:
            raise UserError(f"dim and ffn_dim must be positive, got {self.dim} and {self.ffn_dim}.")

    def new_norm(self) -> nn.Module:
        """Create the norm of a sublayer."""
        return nn.LayerNorm(self.dim) if self.norm == "layer" else nn.RMSNorm(self.dim, eps=1e-6)

    def final_norm(self) -> nn.Module:
        """Create the norm at the end of a stack, which pre-norm layers need."""
        return self.new_norm() if self.norm_order == "pre" else nn.Identity()


class Sublayer(nn.Module):
    """x + dropout(f(norm(x))), or norm(x + dropout(f(x)))."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.pre_norm = options.norm_order == "pre"
        self.norm = options.new_norm()
        self.dropout = nn.Dropout(options.dropout)

    def residual(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply f with norm, dropout and residual connection."""
        if self.pre_norm:
            return x + self.dropout(f(self.norm(x)))
        return self.norm(x + self.dropout(f(x)))


class AttentionSublayer(Sublayer):
    """Any mechanism of the zoo in one role, with residual and norm."""

    role: ClassVar[Role]

    def __init__(self, attention: AttentionFactory, options: BlockOptions, *, layer: int) -> None:
        super().__init__(options)
        self.attention = attention(dim=options.dim, role=self.role, layer=layer)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Attend as `Attention.forward` does, [b q d] -> [b q d]."""
        return self.residual(
            x,
            lambda y: self.attention(y, context, mask=mask, positions=positions, cache=cache),
        )


class CausalSelfAttention(AttentionSublayer):
    """Each token attends to itself and earlier tokens: in decoders and language models."""

    role = "causal"


class GlobalSelfAttention(AttentionSublayer):
    """Each token attends to all tokens: in encoders."""

    role = "global"


class CrossAttention(AttentionSublayer):
    """Each token attends to another sequence: from the decoder to the encoder."""

    role = "cross"


class FeedForward(Sublayer):
    """W₂ σ(W₁ x), or W₂ (silu(W₁ x) ⊙ W₃ x) for `swiglu`, with residual and norm."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        self.activation = options.activation
        gated = options.activation == "swiglu"
        self.expand = nn.Linear(options.dim, options.ffn_dim * (2 if gated else 1))
        self.contract = nn.Linear(options.ffn_dim, options.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, lambda y: self.contract(self._activate(self.expand(y))))

    def _activate(self, x: Tensor) -> Tensor:
        match self.activation:
            case "relu":
                return torch.relu(x)
            case "relu_squared":
                return torch.relu(x).square()
            case "gelu":
                return nn.functional.gelu(x)
            case "swiglu":
                gate, x = x.chunk(2, dim=-1)
                return nn.functional.silu(gate) * x
