"""States that decay: S_t = diag(a_t) S_{t−1} + k_tᵀ v_t, in chunks.

Decays are log a ≤ 0, and only ever summed over neighbouring tokens, never subtracted: no exponent
is positive, nothing overflows, and a weak decay after a strong one keeps its digits.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.recurrent.steps import Steps

CHUNK = 64  # tokens computed in parallel between two updates of the state


def decayed_product(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute q_t S_t for S_t = diag(a_t) S_{t−1} + k_tᵀ v_t.

        out_i = Σ_{j ≤ i} (Σ_c q_ic k_jc Π_{j < m ≤ i} a_mc) v_j

    Work and memory grow with the length. Sums are in the type of the arguments.

    Args:
        steps: with a decay log a, [b|1 h t c], or [b|1 h t 1] if all channels of a head decay
            alike.
        state: [b h c e], S before the first token; None for zeros.

    Returns:
        [b h t e], and the state [b h c e] after the last token.
    """
    assert steps.decay is not None
    length = steps.q.shape[2]
    size = chunk_size(length)
    q, k, v, decay = (
        pad(part, (0, 0, 0, -length % size)).unflatten(2, (-1, size))
        for part in (steps.q, steps.k, steps.v, steps.decay)
    )
    sums = decay.cumsum(dim=-2)
    additions = (k * sum_after(decay).exp()).transpose(-2, -1) @ v
    factors = sums[..., -1:, :].exp().transpose(-2, -1)
    states = [torch.zeros_like(additions[:, :, 0]) if state is None else state]
    # Unbound: each index in a loop would have a gradient as large as all chunks.
    for factor, addition in zip(factors.unbind(2), additions.unbind(2), strict=True):
        states.append(factor * states[-1] + addition)
    earlier = (q * sums.exp()) @ torch.stack(states[:-1], dim=2)
    out = product_within_chunks(q, k, v, decay) + earlier
    return out.flatten(2, 3)[:, :, :length], states[-1]


def chunk_size(length: int) -> int:
    """Return the size of a chunk: a power of two, no larger than the length needs."""
    size = 1
    while size < min(length, CHUNK):
        size *= 2
    return size


def product_within_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Compute `decayed_product` in each chunk alone.

    A chunk is halved, and halved again. One border between halves separates any two tokens, and
    the decay between them is that after the key up to the border, times that from there up to the
    query. So each halving is a product of matrices, whose factors do not exceed q and k.

    Args:
        q: [… s c], with s a power of two.
        k: [… s c].
        v: [… s e].
        decay: [… s c|1].
    """
    out = (q * k).sum(dim=-1, keepdim=True) * v
    half = 1
    while half < q.shape[-2]:
        first, second = zip(
            *(part.unflatten(-2, (-1, 2, half)).unbind(-3) for part in (q, k, v, decay)),
            strict=True,
        )
        queries = second[0] * second[3].cumsum(dim=-2).exp()
        keys = first[1] * sum_after(first[3]).exp()
        product = queries @ keys.transpose(-2, -1) @ first[2]
        out = out + torch.stack([torch.zeros_like(product), product], dim=-3).flatten(-4, -2)
        half *= 2
    return out


def sum_after(decay: Tensor) -> Tensor:
    """Sum decays [… t c] over the tokens after each token."""
    return pad(decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(dim=-2).flip(-2)


def unrolled_weights(q: Tensor, k: Tensor, decay: Tensor, visible: Tensor) -> Tensor:
    """Compute Σ_c q_ic k_jc Π_m a_mc over the m after j, up to i, that i sees.

    Work grows with length²; one query is computed at a time.

    Args:
        q: [b h t c].
        k: [b h t c].
        decay: log a, [b|1 h t c|1].
        visible: [b|1 t t] bool.

    Returns:
        [b h t t], zero where a query does not see a key.
    """
    is_after = torch.ones(2 * k.shape[2:3], dtype=decay.dtype, device=decay.device).triu(1)
    rows = []
    for i in range(q.shape[2]):
        seen = visible[:, None, i, :, None]
        factors = (is_after @ decay.masked_fill(~seen, 0.0)).exp()
        rows.append((q[:, :, i : i + 1] * k * factors * seen).sum(dim=-1))
    return torch.stack(rows, dim=2)


def draw_step_bias(number: int) -> Tensor:
    """Draw biases that softplus maps to step sizes from 0.001 to 0.1, uniform in their logarithm.

    As in Mamba (Gu and Dao 2023, arXiv 2312.00752): at the start, some channels forget within tens
    of tokens, and others keep thousands.
    """
    sizes = torch.empty(number).uniform_(math.log(0.001), math.log(0.1)).exp()
    return sizes + torch.log(-torch.expm1(-sizes))
