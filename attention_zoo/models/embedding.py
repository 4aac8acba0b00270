"""Embeddings of tokens, and the output head."""

import math

import torch
from torch import Tensor, nn

from attention_zoo.errors import check_positive
from attention_zoo.models.blocks import BlockOptions
from attention_zoo.tensor_checks import check_tokens


class TokenEmbedding(nn.Embedding):
    """E[token]·√d, as in Vaswani et al. 2017, §3.4. Entries start with standard deviation 1/√d.

    So embeddings start at the size of sinusoidal positions, and logits from a tied table around 1.
    Without `scale_embedding` they are E[token].
    """

    def __init__(self, vocabulary_size: int, options: BlockOptions) -> None:
        check_positive(vocabulary_size=vocabulary_size)
        super().__init__(vocabulary_size, options.dim)
        nn.init.normal_(self.weight, std=options.dim**-0.5)
        self.scale = math.sqrt(options.dim) if options.scale_embedding else 1.0

    def check(self, tokens: Tensor, name: str) -> None:
        """Refuse what are not tokens [b t] of the vocabulary."""
        if not torch.compiler.is_compiling():
            check_tokens(tokens, name, self.num_embeddings)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens: [b t] -> [b t d]."""
        return super().forward(tokens) * self.scale


class OutputHead(nn.Linear):
    """The logits s·(W x + b) of the next token, bounded by ±cap if there is a cap.

    Args:
        embedding: of the tokens.
        options: of the model: `logit_scale` s, `logit_cap` and `logit_bias`.
        tied: whether W is the embedding's own table.
    """

    def __init__(self, embedding: TokenEmbedding, options: BlockOptions, *, tied: bool) -> None:
        sizes = embedding.embedding_dim, embedding.num_embeddings
        super().__init__(*sizes, bias=options.logit_bias)
        self.scale = options.logit_scale
        self.cap = options.logit_cap
        if tied:
            self.weight = embedding.weight
        else:
            nn.init.normal_(self.weight, std=embedding.embedding_dim**-0.5)
        if options.logit_bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits: [b t d] -> [b t v]."""
        logits = super().forward(x) if self.scale == 1.0 else self.scale * super().forward(x)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
