"""Embeddings of tokens, and the output head."""

import math

from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """E[token]·√d, as in Vaswani et al. 2017, §3.4. Entries start with standard deviation 1/√d.

    So embeddings start at the size of sinusoidal positions, and logits from a tied table around 1.
    """

    def __init__(self, vocabulary_size: int, dim: int) -> None:
        super().__init__(vocabulary_size, dim)
        nn.init.normal_(self.weight, std=dim**-0.5)
        self.scale = math.sqrt(dim)

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
