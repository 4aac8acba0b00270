"""Embeddings of tokens, and the output head."""

import math

import torch
from torch import Tensor, nn

from attention_zoo.errors import check_positive
from attention_zoo.tensor_checks import check_tokens


class TokenEmbedding(nn.Embedding):
    """E[token]·√d, as in Vaswani et al. 2017, §3.4. Entries start with standard deviation 1/√d.

    So embeddings start at the size of sinusoidal positions, and logits from a tied table around 1.
    """

    def __init__(self, vocabulary_size: int, dim: int) -> None:
        check_positive(vocabulary_size=vocabulary_size)
        super().__init__(vocabulary_size, dim)
        nn.init.normal_(self.weight, std=dim**-0.5)
        self.scale = math.sqrt(dim)

    def check(self, tokens: Tensor, name: str) -> None:
        """Refuse what are not tokens [b t] of the vocabulary."""
        if not torch.compiler.is_compiling():
            check_tokens(tokens, name, self.num_embeddings)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens: [b t] -> [b t d]."""
        return super().forward(tokens) * self.scale


def output_head(embedding: TokenEmbedding, *, tied: bool) -> nn.Linear:
    """Create the projection d -> v, with the embedding's own table if tied."""
    head = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)
    if tied:
        head.weight = embedding.weight
    else:
        nn.init.normal_(head.weight, std=embedding.embedding_dim**-0.5)
    return head
