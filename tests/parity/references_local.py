"""Against transformers' sparse attention, which works on chunks of fixed sizes."""

import torch
from torch import Tensor
from transformers import BigBirdConfig, LongformerConfig, ReformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from attention_zoo import create_attention
from attention_zoo.attention.local.big_bird import BigBirdAttention
from attention_zoo.attention.selected.reformer import ReformerAttention
from attention_zoo.masks import Mask
from tests.parity.compared import Outcome, outcome, parity

DIM, HEADS = 32, 4
SIDE, GLOBAL_TOKENS = 3, 2
BLOCK, BLOCKS, RANDOM = 4, 10, 2
CHUNK, ROUNDS, BUCKETS = 5, 2, 4


@parity("longformer", "transformers LongformerSelfAttention")
def longformer() -> tuple[Outcome, Outcome]:
    """Their window has as many keys on either side; lengths are multiples of both sides.

    Keys are padded at the left of a row, so that its global tokens are not the first columns. They
    give a padded query zeros, but if it sees padding alone: only real queries are compared.
    """
    ours = create_attention(
        "longformer",
        dim=DIM,
        heads=HEADS,
        role="global",
        bias=True,
        window=2 * SIDE + 1,
        global_tokens=GLOBAL_TOKENS,
    )
    config = LongformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        attention_window=[2 * SIDE],
        attention_probs_dropout_prob=0.0,
    )
    theirs = LongformerSelfAttention(config, layer_id=0)
    projections = ["query", "key", "value", "query_global", "key_global", "value_global"]
    for name in projections:
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    real = torch.ones(2, 8 * SIDE, dtype=torch.bool)
    real[1, :5] = False
    chosen = torch.zeros_like(real)
    chosen[0, :GLOBAL_TOKENS] = True
    chosen[1, 5 : 5 + GLOBAL_TOKENS] = True
    x = torch.randn(*real.shape, DIM, requires_grad=True)
    (attended,) = theirs(
        x,
        # 0 for the window, more than 0 for global tokens, less for padding.
        attention_mask=torch.where(real, chosen * 10000.0, -10000.0),
        is_index_masked=~real,
        is_index_global_attn=chosen,
        is_global_attn=True,
    )
    weights = [[getattr(module, name).weight for name in projections] for module in (ours, theirs)]
    return (
        outcome(ours(x, mask=Mask(key_mask=real))[real], [x, *weights[0]]),
        outcome(ours.output(attended)[real], [x, *weights[1]]),
    )


@parity("big_bird", "transformers BigBirdBlockSparseAttention")
def big_bird() -> tuple[Outcome, Outcome]:
    """Their last block is global too: it is padded here, so that none sees it and it counts not.

    They draw the random blocks with numpy: ours are put in their place.
    """
    ours = create_attention(
        "big_bird",
        dim=DIM,
        heads=HEADS,
        role="global",
        block=BLOCK,
        global_blocks=1,
        random_blocks=RANDOM,
        seed=3,
    )
    assert isinstance(ours, BigBirdAttention)
    config = BigBirdConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        use_bias=False,
    )
    theirs = BigBirdBlockSparseAttention(config)
    for name in ("query", "key", "value"):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    drawn = [ours.draw_blocks(block, BLOCKS - 1) for block in range(1, BLOCKS - 1)]
    assert all(0 < block < BLOCKS - 1 for row in drawn for block in row)
    theirs._bigbird_block_rand_mask_with_head = lambda **_: [drawn] * HEADS
    real = torch.ones(2, BLOCKS * BLOCK, dtype=torch.bool)
    real[:, -BLOCK:] = False
    real[1, -BLOCK - 1] = False
    x = torch.randn(*real.shape, DIM, requires_grad=True)
    attended, _ = theirs(x, **their_masks(real))
    weights = [
        [module.query.weight, module.key.weight, module.value.weight] for module in (ours, theirs)
    ]
    return (
        outcome(ours(x, mask=Mask(key_mask=real))[real], [x, *weights[0]]),
        outcome(ours.output(attended)[real], [x, *weights[1]]),
    )


def their_masks(real: Tensor) -> dict[str, Tensor]:
    """What `BigBirdModel` makes of a mask [b n]."""
    seen = real.float()
    blocked = seen.unflatten(1, (-1, BLOCK))
    near = torch.cat([blocked[:, 1:-3], blocked[:, 2:-2], blocked[:, 3:-1]], dim=2)
    return {
        "band_mask": torch.einsum("b m u, b m s -> b m u s", blocked[:, 2:-2], near)[:, None],
        "from_mask": seen[:, None, :, None],
        "to_mask": seen[:, None, None, :],
        "from_blocked_mask": blocked,
        "to_blocked_mask": blocked,
    }


@parity("reformer", "transformers LSHSelfAttention")
def reformer() -> tuple[Outcome, Outcome]:
    """They cut all of the sorted row into chunks, and let queries see what is in other buckets.

    That is the same where buckets are whole chunks, but for the first of a bucket, which looks
    back at the bucket before: so buckets are filled from the last tokens to the first, and the
    causal mask hides it. The first of all looks back at the last of all, which is padding. They
    count a key once for each round that it is seen in: here that is all of them, or none. All is
    in float64: for a query that sees itself alone they subtract scores of −10⁵, which leaves two
    digits in float32.
    """
    ours = create_attention(
        "reformer",
        dim=DIM,
        heads=HEADS,
        role="causal",
        buckets=BUCKETS,
        rounds=ROUNDS,
        block=CHUNK,
        seed=0,
    )
    assert isinstance(ours, ReformerAttention)
    config = ReformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        attention_head_size=DIM // HEADS,
        is_decoder=True,
        num_buckets=BUCKETS,
        num_hashes=ROUNDS,
        lsh_attn_chunk_length=CHUNK,
        lsh_num_chunks_before=1,
        lsh_num_chunks_after=0,
        lsh_attention_probs_dropout_prob=0.0,
        hash_seed=7,
        attn_layers=["lsh"],
    )
    ours, theirs = ours.double(), LSHSelfAttention(config, layer_idx=0).double()
    theirs.query_key.load_state_dict(ours.query.state_dict())
    theirs.value.load_state_dict(ours.value.state_dict())
    # As they draw them.
    torch.manual_seed(7)
    ours.rotations.copy_(torch.randn_like(ours.rotations))

    sizes = torch.tensor([3, 1, 2, 4]) * CHUNK
    bucket = torch.arange(BUCKETS).flip(0).repeat_interleave(sizes)
    heads = falling_into(bucket, ours.rotations)
    # What the projection of queries makes such heads of, and padding behind it.
    x = torch.linalg.solve(ours.query.weight.T, heads.transpose(1, 2).flatten(2), left=False)
    x = torch.cat([x, torch.randn(2, CHUNK, DIM)], dim=1).detach().requires_grad_()
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    real[:, len(bucket) :] = False
    found = ours.hash_tokens(x, Mask(key_mask=real)).numbers
    assert (found[..., : len(bucket)] == bucket).all()
    attended = theirs(x, attention_mask=real).hidden_states
    return (
        outcome(ours(x, mask=Mask(key_mask=real))[real], [x, ours.query.weight, ours.value.weight]),
        outcome(ours.output(attended)[real], [x, theirs.query_key.weight, theirs.value.weight]),
    )


def falling_into(bucket: Tensor, rotations: Tensor) -> Tensor:
    """Heads [2 h n c] of tokens that fall into a bucket [n] in every round."""
    half = BUCKETS // 2
    direction = torch.where(bucket < half, 1.0, -1.0)[:, None] * torch.eye(half)[bucket % half]
    products = 3.0 * direction.repeat(1, ROUNDS)
    products = products + 0.5 * torch.rand(2, HEADS, *products.shape)
    matrices = rotations.flatten(2)
    free = torch.randn(2, HEADS, len(bucket), matrices.shape[1], dtype=matrices.dtype)
    inverse = torch.linalg.pinv(matrices)
    return free + (products - free @ matrices) @ inverse
