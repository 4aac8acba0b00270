"""Traps of compressed attention: which tokens an entry is made of, and who sees it."""

import pytest
import torch

from attention_zoo import UserError
from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.attention.local.compressed import CompressedAttention, CompressedCache
from attention_zoo.attention.selected import topk_selection
from attention_zoo.attention.selected.compressed_sparse import CompressedSparseAttention
from attention_zoo.masks import Mask
from tests.conformance.numbers import assert_same
from tests.conformance.test_caches import decode
from tests.traps.dense import (
    DIM,
    HEADS,
    WIDTH,
    assert_packed_sequences_stand_alone,
    assert_whole,
    built,
    tokens,
)
from tests.traps.test_selected import Largest, gradients_by_name

BLOCK, WINDOW = 3, 2
OPTIONS: dict[str, dict[str, int]] = {
    "heavily_compressed": {},
    "compressed_sparse": {"top_k": 99, "index_heads": 2},
}
every = pytest.mark.parametrize("name", list(OPTIONS))


def compressed(name: str, **options: object) -> CompressedAttention:
    sizes = {"block": BLOCK, "window": WINDOW, **OPTIONS[name]}
    result = built(name, "causal", **sizes | options)
    assert isinstance(result, CompressedAttention)
    return result


def sparse(**options: object) -> CompressedSparseAttention:
    result = compressed("compressed_sparse", **options)
    assert isinstance(result, CompressedSparseAttention)
    return result


# Entries


@every
def test_a_query_sees_its_window_and_whole_blocks(name: str) -> None:
    """A block from its last token on, neither earlier nor later; and no window of one more."""
    attention = compressed(name)
    x = tokens(14).requires_grad_()
    out = attention(x)
    for i in range(14):
        (gradient,) = torch.autograd.grad(out[:, i].sin().sum(), x, retain_graph=True)
        whole = (i + 1) // BLOCK * BLOCK
        seen = [j for j in range(14) if j < whole or i - WINDOW < j <= i]
        assert gradient.ne(0).any(dim=-1).any(dim=0).nonzero()[:, 0].tolist() == seen


@every
def test_an_entry_is_made_of_its_block_and_with_overlap_of_the_one_before(name: str) -> None:
    attention = compressed(name)
    x = tokens(3 * BLOCK).requires_grad_()
    entries = attention.compress_tokens(x, Mask(causal=True), torch.arange(9)[None], None)
    for i in range(3):
        entry = entries.features["keys"][:, :, i]
        (gradient,) = torch.autograd.grad(entry.sin().sum(), x, retain_graph=True)
        first = max(i - 1, 0) if name == "compressed_sparse" else i
        made_of = gradient.ne(0).any(dim=-1).any(dim=0).nonzero()[:, 0].tolist()
        assert made_of == [*range(first * BLOCK, (i + 1) * BLOCK)]


@every
def test_an_entry_counts_once_beside_the_tokens_of_the_window(name: str) -> None:
    """Of equal tokens all keys are alike: one for each token of the window and each whole block."""
    attention = compressed(name)
    with torch.no_grad():
        for compressor in attention.compressors.values():
            compressor.value.weight.copy_(
                attention.key_value.weight.repeat(compressor_parts(name), 1)
            )
            compressor.norm.weight.copy_(attention.key_value_norm.weight)
        attention.sinks.fill_(-1e9)
    near, far = attention.attention_map(tokens(1).expand(-1, 11, -1)).chunk(2, dim=1)
    for i in range(11):
        in_window, whole = min(i + 1, WINDOW), (i + 1) // BLOCK
        share = torch.tensor(1 / (in_window + whole))
        assert_same(near[:, :, i, i + 1 - in_window : i + 1], share.expand(2, HEADS, in_window))
        assert_same(far[:, :, i, BLOCK - 1 :: BLOCK][..., :whole], share.expand(2, HEADS, whole))
        assert_same(near[:, :, i].sum(-1) + far[:, :, i].sum(-1), torch.ones(2, HEADS))


def compressor_parts(name: str) -> int:
    return 2 if name == "compressed_sparse" else 1


@every
def test_gates_are_by_channel(name: str) -> None:
    """What opens a gate of one channel changes no other, before the norm and the rotation."""
    compressor = compressed(name).compressor
    with torch.no_grad():
        compressor.norm.weight.fill_(1.0)
    features = compressor.project(tokens(BLOCK))
    ends, starts = torch.tensor([[BLOCK - 1]]), torch.tensor([[0]])
    before = compressor(features, ends, starts)[:, :, 0]
    own = WIDTH * (compressor_parts(name) - 1)
    with torch.no_grad():
        compressor.position_bias[0, own + 1] += 100.0
    after = compressor(features, ends, starts)[:, :, 0]
    ratio = after / before
    assert_same(ratio[..., [2, 3]], ratio[..., :1].expand(-1, -1, 2))  # The norm is of all.
    assert not torch.allclose(ratio[..., 1], ratio[..., 0])


@every
def test_an_entry_stands_at_the_first_token_of_its_block(name: str) -> None:
    """The positions of its other tokens do not matter once these have left the window."""
    attention = compressed(name, position="rotary")
    x, positions = tokens(12), torch.arange(12)[None]
    out = attention(x, positions=positions)[:, -1]
    others, firsts = positions.clone(), positions.clone()
    others[:, [1, 2, 4, 5, 7, 8]] += 7
    firsts[:, [0, 3, 6]] += 7
    assert_same(attention(x, positions=others)[:, -1], out)
    assert not torch.allclose(attention(x, positions=firsts)[:, -1], out)


@every
def test_a_sink_takes_weight_and_gives_nothing(name: str) -> None:
    attention = compressed(name)
    x = tokens(9)
    total = attention.attention_map(x).unflatten(1, (2, HEADS)).sum(dim=(1, 4))
    assert (total < 1).all()
    with torch.no_grad():
        attention.sinks.fill_(1e4)
    assert (attention(x) == 0).all()


# Sizes, padding, packed sequences and decoding


@every
@pytest.mark.parametrize(("block", "window"), [(1, 1), (2, 5), (5, 2), (100, 3), (3, 100)])
def test_blocks_and_windows_of_every_size_keep_the_contract(
    name: str, block: int, window: int
) -> None:
    assert_whole(compressed(name, block=block, window=window, position="rotary"))


@every
def test_other_widths_and_biases_keep_the_contract(name: str) -> None:
    assert_whole(compressed(name, head_dim=6, bias=True, position="partial_rotary"))


@every
@pytest.mark.parametrize("block", [1, 2, BLOCK])
def test_padding_anywhere_takes_no_place_in_a_block(name: str, block: int) -> None:
    attention = compressed(name, block=block, position="rotary")
    x, real = tokens(24), torch.rand(2, 24) < 0.6
    positions, mask = (real.cumsum(dim=1) - 1).clamp(min=0), Mask(key_mask=real)
    out = attention(x, mask=mask, positions=positions)
    for row in range(2):
        assert_same(out[row, real[row]], attention(x[row : row + 1, real[row]])[0])
    for chunks in ([24], [5, 1, 1, 17], [1] * 24):
        cache = attention.new_cache()
        decoded = decode(attention, cache, x, chunks, mask=mask, positions=positions)
        assert_same(decoded[real], out[real])


@every
def test_packed_sequences_have_blocks_of_their_own(name: str) -> None:
    assert_packed_sequences_stand_alone(compressed(name, position="rotary"))


@every
def test_the_cache_grows_by_an_entry_for_each_block(name: str) -> None:
    attention = compressed(name, position="rotary")
    for length in (1, BLOCK - 1, BLOCK, 20, 21):
        cache = attention.new_cache()
        assert isinstance(cache, CompressedCache)
        decode(attention, cache, tokens(length), [1] * length)
        parts = cache.tokens, cache.uncompressed.tokens, cache.entries
        kept = [x for part in parts for x in part.values() if x.is_floating_point()]
        assert sum(x[0].numel() for x in kept) == attention.decode_state(length)
    growth = attention.decode_state(3000 + BLOCK) - attention.decode_state(3000)
    assert growth == WIDTH * compressor_parts(name)  # That of the indexer too.


# The indexer


def test_it_selects_the_best_entries_by_the_indexers_scores() -> None:
    """Written out; the entries of the indexer are not those of the heads."""
    attention = sparse(top_k=2)
    x = tokens(15)
    far = attention.attention_map(x)[:, HEADS:]
    q = attention.index_query(x).unflatten(-1, (2, WIDTH))
    for b in range(2):
        entries = attention.index_compressor.naive(x[b])
        for i in range(15):
            scores = (entries[: (i + 1) // BLOCK] @ q[b, i].T).relu() @ attention.index_weight(x)[
                b, i
            ]
            best = scores.topk(min(2, len(scores))).indices.sort().values
            columns = (far[b, :, i] > 0).any(dim=0).nonzero()[:, 0]
            if scores.unique().numel() == len(scores):
                assert_same(columns, best * BLOCK + BLOCK - 1)


def test_the_indexer_learns_by_its_own_loss_alone() -> None:
    attention = sparse(top_k=3)
    x = tokens(21).requires_grad_()
    out = attention(x)
    loss = take_auxiliary_loss(attention)
    assert loss is not None
    names = [name for name, _ in attention.named_parameters()]
    assert gradients_by_name(attention, out.sin().sum()) == {
        name: not name.startswith("index") for name in names
    }
    assert torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True) == (None,)
    assert gradients_by_name(attention, loss) == {name: name.startswith("index") for name in names}


def test_the_loss_is_the_divergence_on_the_selected_entries() -> None:
    """Each head's weights on these add up to one, without those of the window and the sink."""
    attention = sparse(top_k=2)
    x = tokens(12)[:1]
    attention(x)
    loss = take_auxiliary_loss(attention)
    far = attention.attention_map(x)[0, HEADS:]
    q = attention.index_query(x)[0].unflatten(-1, (2, WIDTH))
    entries, w, expected = attention.index_compressor.naive(x[0]), attention.index_weight(x)[0], 0.0
    for i in range(12):
        columns = (far[:, i] > 0).any(dim=0).nonzero()[:, 0]
        if len(columns):
            p = far[:, i, columns]
            p = (p / p.sum(dim=-1, keepdim=True)).mean(dim=0)
            scores = (entries[columns // BLOCK] @ q[i].T).relu() @ w[i] / (2 * WIDTH) ** 0.5
            expected = expected + (p * (p.log() - scores.log_softmax(0))).sum()
    assert_same(loss, expected / 12)


def test_the_loss_is_a_mean_over_real_tokens() -> None:
    attention = sparse(top_k=3)
    x, real = tokens(21)[:1], torch.arange(21)[None] >= 8
    attention(x[real][None])
    alone = take_auxiliary_loss(attention)
    for shift in (0, -8, -4):
        attention(x.roll(shift, dims=1), mask=Mask(key_mask=real.roll(shift, dims=1)))
        assert_same(take_auxiliary_loss(attention), alone)


def test_queries_in_parts_give_what_they_give_together(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = sparse(top_k=2), tokens(17)
    whole = attention(x), take_auxiliary_loss(attention)
    monkeypatch.setattr(topk_selection, "MAX_GATHERED_KEYS", 12)
    assert_same((attention(x), take_auxiliary_loss(attention)), whole)


def test_no_scores_of_all_queries_and_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_selection, "MAX_GATHERED_KEYS", 1 << 9)
    attention = sparse(block=4, top_k=4, index_heads=1)
    x = torch.randn(1, 512, DIM, requires_grad=True)
    with Largest() as largest:
        attention(x).sum().backward()
    assert largest.numel < 512 * 512 // 4


def test_a_backward_pass_without_the_loss_warns() -> None:
    with pytest.warns(UserWarning, match="The indexer of compressed_sparse does not learn"):
        sparse(top_k=2)(tokens(9).requires_grad_()).sum().backward()


@every
@pytest.mark.parametrize("option", ["block", "window", "top_k", "index_heads"])
def test_sizes_of_nothing_are_refused(name: str, option: str) -> None:
    if option in {"block", "window", *OPTIONS[name]}:
        with pytest.raises(UserError, match=f"{option} must be at least 1, got 0"):
            compressed(name, **{option: 0})
