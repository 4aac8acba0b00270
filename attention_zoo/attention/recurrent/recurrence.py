"""States that decay: S_t = diag(a_t) S_{t−1} + k_tᵀ v_t, in chunks.

Decays are handled as log a ≤ 0, and only ever summed over stretches of tokens, never subtracted: so
no exponent is positive, nothing overflows, and a weak decay behind a strong one keeps its digits.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # tokens computed in parallel between two updates of the state


def decayed_product(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q_t S_t for S_t = diag(a_t) S_{t−1} + k_tᵀ v_t, that is

        out_i = Σ_{j ≤ i} (Σ_c q_ic k_jc Π_{j < m ≤ i} a_mc) v_j

    with work and memory that grow as the length does. Sums are made in the type of the arguments.

    Args:
        q, k: [b h t c]. v: [b h t e].
        decay: log a, [b|1 h t c], or [b|1 h t 1] where all channels of a head decay alike. Not
            above 0; −inf forgets all that came before.
        state: [b h c e], S before the first token; None for nothing.

    Returns:
        [b h t e], and the state [b h c e] behind the last token.
    """
    length = q.shape[2]
    size = 1
    while size < min(length, CHUNK):
        size *= 2
    q, k, v, decay = (
        pad(part, (0, 0, 0, -length % size)).unflatten(2, (-1, size)) for part in (q, k, v, decay)
    )
    until, after = decay.cumsum(dim=-2), sum_after(decay)
    added = (k * after.exp()).transpose(-2, -1) @ v
    kept = until[..., -1:, :].exp().transpose(-2, -1)
    states = [torch.zeros_like(added[:, :, 0]) if state is None else state]
    # Taken apart once: each index of a loop would have a gradient as large as all chunks.
    for decayed, new in zip(kept.unbind(2), added.unbind(2), strict=True):
        states.append(decayed * states[-1] + new)
    earlier = (q * until.exp()) @ torch.stack(states[:-1], dim=2)
    out = within_chunks(q, k, v, decay) + earlier
    return out.flatten(2, 3)[:, :, :length], states[-1]


def within_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """`decayed_product` of each chunk alone: q, k [… s c], v [… s e], decay [… s c|1], s = 2ⁿ.

    A chunk is halved, and halved again. Any two tokens are parted by one border between halves,
    and what decays between them is what decays behind the key up to the border, and from there
    up to the query. So each halving is a product of matrices, whose factors do not exceed q and k.
    """
    out = (q * k).sum(dim=-1, keepdim=True) * v
    half = 1
    while half < q.shape[-2]:
        early, late = zip(
            *(part.unflatten(-2, (-1, 2, half)).unbind(-3) for part in (q, k, v, decay)),
            strict=True,
        )
        queries = late[0] * late[3].cumsum(dim=-2).exp()
        keys = early[1] * sum_after(early[3]).exp()
        seen = queries @ keys.transpose(-2, -1) @ early[2]
        out = out + torch.stack([torch.zeros_like(seen), seen], dim=-3).flatten(-4, -2)
        half *= 2
    return out


def sum_after(decay: Tensor) -> Tensor:
    """Of each of the tokens [… t c], the sum over those behind it."""
    return pad(decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(dim=-2).flip(-2)


def unrolled_weights(q: Tensor, k: Tensor, decay: Tensor, visible: Tensor) -> Tensor:
    """Σ_c q_ic k_jc Π_m a_mc over the m between j and i, and i itself, that i sees.

    With length² work, one query at a time.

    Args:
        q, k: [b h t c]. decay: log a, [b|1 h t c|1].
        visible: [b|1 t t] bool.

    Returns:
        [b h t t], zero where nothing is visible.
    """
    behind = torch.ones(2 * k.shape[2:3], dtype=decay.dtype, device=decay.device).triu(1)
    rows = []
    for i in range(q.shape[2]):
        seen = visible[:, None, i, :, None]
        window_span = (behind @ decay.masked_fill(~seen, 0.0)).exp()
        rows.append((q[:, :, i : i + 1] * k * window_span * seen).sum(dim=-1))
    return torch.stack(rows, dim=2)


def step_sizes(number: int) -> Tensor:
    """What softplus turns into step sizes from 0.001 to 0.1, evenly spread in their logarithm.

    As in Mamba (Gu and Dao 2023, arXiv 2312.00752): from the start, some channels forget within
    tens of tokens, and some keep thousands.
    """
    sizes = torch.empty(number).uniform_(math.log(0.001), math.log(0.1)).exp()
    return sizes + torch.log(-torch.expm1(-sizes))
