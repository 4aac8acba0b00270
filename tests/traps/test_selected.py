"""Traps of attention to selected keys."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention, take_auxiliary_loss
from attention_zoo.attention.selected import topk_selection
from attention_zoo.attention.selected.lightning_indexer import LightningIndexerAttention
from attention_zoo.attention.selected.native_sparse import NativeSparseAttention
from attention_zoo.masks import Mask
from tests.conformance.definition import key_mask, packed
from tests.conformance.numbers import assert_same, values_and_gradients

DIM, BLOCK, TOP_K = 16, 4, 3
OPTIONS = {
    "block_mixture": {"block": BLOCK, "blocks": 2},
    "native_sparse": {"block": BLOCK, "blocks": 4, "window": 3},
    "lightning_indexer": {"top_k": TOP_K},
}
every = pytest.mark.parametrize("name", list(OPTIONS))
of_blocks = pytest.mark.parametrize("name", ["block_mixture", "native_sparse"])


def attention(name: str, **options: object) -> Attention:
    """Build with larger weights than a new one has, so that selections differ between queries."""
    options = {"heads": 4, "kv_heads": 2, **OPTIONS[name], **options}
    result = create_attention(name, dim=DIM, role="causal", **options)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.mul_(3.0)
    return result


def find_seen_blocks(weights: Tensor) -> Tensor:
    """Return which blocks have any weight [… m] in a map [… k]."""
    return weights.unflatten(-1, (-1, BLOCK)).sum(-1) > 0


# All of them


@every
def test_the_selection_knows_nothing_of_the_future(name: str) -> None:
    """It knows neither later blocks, nor later keys of the query's own block."""
    ours = attention(name)
    x = torch.randn(1, 24, DIM)
    out, weights = ours(x), ours.attention_map(x)
    for query in range(23):
        other = x.clone()
        other[:, query + 1 :] = 100.0 * torch.randn(1, 23 - query, DIM)
        assert_same(ours(other)[:, : query + 1], out[:, : query + 1])
        assert_same(ours.attention_map(other)[:, :, : query + 1], weights[:, :, : query + 1])


@every
def test_padding_does_not_shift_what_is_counted(name: str) -> None:
    """At the left, inside, and by numbers that are no multiples of a block."""
    ours = attention(name)
    x = torch.randn(1, 21, DIM)
    for start, count in ((0, 3), (0, 5), (6, 3)):
        real = torch.ones(1, 21, dtype=torch.bool)
        real[:, start : start + count] = False
        mask = Mask(key_mask=real)
        alone = x[real][None]
        assert_same(ours(x, mask=mask)[real], ours(alone)[0])
        weights = ours.attention_map(x, mask=mask)[0][:, real[0]][:, :, real[0]]
        assert_same(weights, ours.attention_map(alone)[0])


@every
def test_the_selection_is_made_within_a_document(name: str) -> None:
    ours = attention(name)
    segment_ids = packed([7, 13, 5], 1)
    x = torch.randn(1, 25, DIM)
    # The first token of the second document is padding: the document begins with the next.
    real = torch.arange(25)[None] != 7
    out = ours(x, mask=Mask(segment_ids=segment_ids, key_mask=real))
    for segment in range(3):
        tokens = (segment_ids == segment) & real
        assert_same(out[tokens], ours(x[tokens][None])[0])


@every
def test_queries_are_computed_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = attention(name)
    x = torch.randn(2, 21, DIM)
    mask = Mask(key_mask=key_mask("interior", 2, 21), segment_ids=packed([6, 11, 4], 2))
    whole = values_and_gradients(lambda x: ours(x, mask=mask), ours, x)
    loss = take_auxiliary_loss(ours)
    for gathered in (1, 50):
        monkeypatch.setattr(topk_selection, "MAX_GATHERED_KEYS", gathered)
        assert_same(values_and_gradients(lambda x: ours(x, mask=mask), ours, x), whole)
        if loss is not None:
            assert_same(take_auxiliary_loss(ours), loss)


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor of real numbers."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, Tensor) and part.is_floating_point():
                self.numel = max(self.numel, part.numel())
        return result


@every
def test_no_weights_of_all_queries_and_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both passes, all tensors, also of scores for the selection, are below length²."""
    monkeypatch.setattr(topk_selection, "MAX_GATHERED_KEYS", 1 << 9)
    length = 256
    options = {"lightning_indexer": {"index_heads": 1, "top_k": 16}}.get(name, {})
    ours = attention(name, heads=2, kv_heads=1, **options)
    x = torch.randn(1, length, DIM, requires_grad=True)
    with Largest() as largest:
        ours(x).sum().backward()
    assert largest.numel < length**2 // 4


@every
def test_a_selection_of_all_keys_is_dense_attention(name: str) -> None:
    plenty = {"top_k": 99} if name == "lightning_indexer" else {"blocks": 99}
    ours = attention(name, **plenty)
    dense = create_attention("grouped_query", dim=DIM, heads=4, kv_heads=2, role="causal")
    dense.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 21, DIM)
    if isinstance(ours, NativeSparseAttention):
        x = open_gate(ours, x, "selected")
    assert_same(ours.attention_map(x), dense.attention_map(x))
    assert_same(ours(x), dense(x))


# Blocks


@of_blocks
def test_fewer_blocks_than_are_always_seen_are_refused(name: str) -> None:
    always = {"block_mixture": 1, "native_sparse": 3}[name]
    attention(name, blocks=always)
    with pytest.raises(UserError, match=f"blocks must be at least {always}.*got {always - 1}"):
        attention(name, blocks=always - 1)
    with pytest.raises(UserError, match="block must be at least 1, got 0"):
        attention(name, block=0)


def test_block_mixture_counts_the_own_block_among_those_it_sees() -> None:
    """The paper's top-k holds it; a query at its beginning sees itself alone there."""
    x = torch.randn(1, 24, DIM)
    seen = find_seen_blocks(attention("block_mixture", blocks=3).attention_map(x))
    own = torch.arange(24) // BLOCK
    assert seen[0, :, torch.arange(24), own].all()
    assert (seen.sum(-1) == (own + 1).clamp(max=3)).all()
    alone = attention("block_mixture", blocks=1).attention_map(x)
    assert (find_seen_blocks(alone).sum(-1) == 1).all()
    assert_same(alone[0, :, 8, 8], torch.ones(4))


def test_block_mixture_lets_each_head_select() -> None:
    """Heads that share keys select different blocks too."""
    seen = find_seen_blocks(attention("block_mixture").attention_map(torch.randn(1, 48, DIM)))
    assert (seen[:, 0] != seen[:, 1]).any()


def test_block_mixture_selects_by_the_mean_and_not_by_the_best_key() -> None:
    ours = attention("block_mixture", heads=1, kv_heads=1, head_dim=DIM)
    with torch.no_grad():
        for part in (ours.query, ours.key):
            part.weight.copy_(torch.eye(DIM))
    x = torch.zeros(1, 12, DIM)
    x[0, :, 0] = torch.tensor([9.0, -4.0, -4.0, -4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    seen = find_seen_blocks(ours.attention_map(x))
    assert seen[0, 0, 8:].tolist() == [[False, True, True]] * 4


# Native sparse attention

BRANCHES = ("compressed", "selected", "sliding")


def open_gate(ours: NativeSparseAttention, x: Tensor, branch: str) -> Tensor:
    """Open the gates of one branch, close the others, and return x with the gates' input."""
    gates = torch.tensor([1e4 if name == branch else -1e4 for name in BRANCHES])
    with torch.no_grad():
        ours.gate.weight.zero_()
        ours.gate.weight[:, 0] = gates.repeat(ours.heads)
    x = x.clone()
    x[..., 0] = 1.0
    return x


def compute_branch_map(branch: str, x: Tensor, **options: object) -> Tensor:
    ours = attention("native_sparse", **options)
    assert isinstance(ours, NativeSparseAttention)
    return ours.attention_map(open_gate(ours, x, branch))


def test_native_sparse_sees_a_compressed_block_once_it_is_whole() -> None:
    weights = compute_branch_map("compressed", torch.randn(1, 24, DIM))
    for query in range(24):
        whole = (query + 1) // BLOCK * BLOCK
        assert (weights[0, :, query, :whole] > 0).all()
        assert (weights[0, :, query, whole:] == 0).all()
        assert_same(weights[0, :, query].sum(-1), torch.full((4,), float(whole > 0)))


def test_native_sparse_compresses_by_the_mean() -> None:
    blocks = compute_branch_map("compressed", torch.randn(1, 24, DIM)).unflatten(-1, (-1, BLOCK))
    assert_same(blocks, blocks.mean(-1, keepdim=True).expand_as(blocks))


def test_native_sparse_always_selects_the_first_and_the_last_two_blocks() -> None:
    seen = find_seen_blocks(compute_branch_map("selected", torch.randn(1, 48, DIM), blocks=3))
    for query in range(48):
        own = query // BLOCK
        expected = torch.zeros(12, dtype=torch.bool)
        expected[[0, max(own - 1, 0), own]] = True
        assert (seen[0, :, query] == expected).all()


def test_native_sparse_heads_of_a_group_select_alike() -> None:
    """By their weights together: groups differ, heads within one do not."""
    seen = find_seen_blocks(compute_branch_map("selected", torch.randn(1, 80, DIM), blocks=5))
    groups = seen[0].unflatten(0, (2, 2))
    assert (groups[:, 0] == groups[:, 1]).all()
    assert (groups[0] != groups[1]).any()


def test_native_sparse_selects_by_the_sum_over_a_group() -> None:
    """The compressed weights of one head alone, or their largest, would select other blocks."""
    ours = attention("native_sparse", head_dim=DIM, kv_heads=1, heads=2)
    assert isinstance(ours, NativeSparseAttention)
    x = open_gate(ours, torch.randn(2, 80, DIM), "compressed")
    p = ours.attention_map(x).unflatten(-1, (-1, BLOCK)).sum(-1)
    seen = find_seen_blocks(ours.attention_map(open_gate(ours, x, "selected")))[:, 0]
    for query in range(4 * BLOCK, 80):
        own = query // BLOCK
        others = p.sum(1)[:, query, 1 : own - 1]
        best = 1 + others.argmax(-1)
        assert seen[[0, 1], query, best].all() and (seen[:, query].sum(-1) == 4).all()


def test_native_sparse_window_narrows_the_sliding_branch_alone() -> None:
    x = torch.randn(1, 24, DIM)
    distance = torch.arange(24)[:, None] - torch.arange(24)
    near = (distance >= 0) & (distance < 3)
    assert ((compute_branch_map("sliding", x) > 0) == near).all()
    for branch in ("compressed", "selected"):
        assert (compute_branch_map(branch, x)[:, :, 10:, 0] > 0).all()
    with pytest.raises(UserError, match="window must be at least 1"):
        attention("native_sparse", window=0)


# The lightning indexer

INDEXER = ("index_query.weight", "index_key.weight", "index_weight.weight")


def gradients_by_name(ours: Attention, loss: Tensor) -> dict[str, bool]:
    """Return for each parameter whether any gradient of the loss reaches it."""
    names, parameters = zip(*ours.named_parameters(), strict=True)
    gradients = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return {name: bool(part.ne(0).any()) for name, part in zip(names, gradients, strict=True)}


def test_lightning_indexer_learns_by_its_own_loss_alone() -> None:
    ours = attention("lightning_indexer")
    x = torch.randn(2, 21, DIM, requires_grad=True)
    out = ours(x)
    loss = take_auxiliary_loss(ours)
    assert loss is not None
    assert gradients_by_name(ours, out.sin().sum()) == {
        name: name not in INDEXER for name, _ in ours.named_parameters()
    }
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert (gradient == 0).all()
    assert gradients_by_name(ours, loss) == {
        name: name in INDEXER for name, _ in ours.named_parameters()
    }


def test_lightning_indexer_loss_is_the_divergence_on_the_selected_keys() -> None:
    """Written out; the weights of all heads are added and normalised."""
    ours = attention("lightning_indexer", index_heads=2)
    x = torch.randn(1, 9, DIM)
    ours(x)
    loss = take_auxiliary_loss(ours)
    weights = ours.attention_map(x)[0]
    q = ours.index_query(x)[0].unflatten(-1, (2, 4))
    k, w = ours.index_key(x)[0], ours.index_weight(x)[0]
    expected = 0.0
    for t in range(9):
        scores = sum(w[t, j] * (k[: t + 1] @ q[t, j]).relu() for j in range(2)) / 8**0.5
        selected = sorted(range(t + 1), key=lambda s, i=scores: (i[s].item(), s))[-TOP_K:]
        assert set(selected) == set(weights[0, t].nonzero()[:, 0].tolist())
        p = weights[:, t, selected].sum(0)
        p = p / p.sum()
        expected = expected + (p * (p.log() - scores[selected].log_softmax(0))).sum()
    assert_same(loss, expected / 9)


def test_lightning_indexer_loss_is_a_mean_over_real_tokens() -> None:
    ours = attention("lightning_indexer")
    x, real = torch.randn(1, 21, DIM), torch.arange(21)[None] >= 8
    ours(x[real][None])
    alone = take_auxiliary_loss(ours)
    ours(x, mask=Mask(key_mask=real))
    assert_same(take_auxiliary_loss(ours), alone)
    # Padding after real tokens attends, but does not count.
    ours(x.roll(-8, dims=1), mask=Mask(key_mask=real.roll(-8, dims=1)))
    assert_same(take_auxiliary_loss(ours), alone)
    ours(x.repeat(3, 1, 1), mask=Mask(key_mask=real.repeat(3, 1)))
    assert_same(take_auxiliary_loss(ours), alone)
    ours(x, mask=Mask(key_mask=torch.zeros_like(real)))
    assert take_auxiliary_loss(ours) == 0


def test_lightning_indexer_loss_falls_to_nothing_when_it_is_followed() -> None:
    """The indexer can learn the weights of the heads."""
    ours = attention("lightning_indexer", top_k=99)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.02)
    x, losses = torch.randn(2, 9, DIM), []
    for _ in range(60):
        ours(x)
        loss = take_auxiliary_loss(ours)
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) >= 0 and losses[-1] < losses[0] / 4


def test_lightning_indexer_has_no_loss_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not computed either: keys are scored once, for the selection."""
    ours = attention("lightning_indexer")
    assert isinstance(ours, LightningIndexerAttention)
    score_index, calls = ours.score_index, []
    monkeypatch.setattr(ours, "score_index", lambda *args: calls.append(1) or score_index(*args))
    x = torch.randn(1, 9, DIM)
    ours(x)
    assert ours.auxiliary_loss is not None and len(calls) == 2
    ours.eval()
    ours(x)
    assert ours.auxiliary_loss is None and len(calls) == 3
    ours.train()
    ours.attention_map(x)
    assert ours.auxiliary_loss is None


def test_lightning_indexer_selects_the_latest_of_equal_scores() -> None:
    """Scores of 0 are common after a ReLU; decoding in chunks must select the same keys."""
    ours = attention("lightning_indexer")
    with torch.no_grad():
        ours.index_key.weight.zero_()
    x = torch.randn(1, 9, DIM)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    near = (distance >= 0) & (distance < TOP_K)
    assert ((ours.attention_map(x) > 0) == near).all()
    cache = ours.new_cache()
    steps = [ours(x[:, i : i + 1], cache=cache) for i in range(9)]
    assert_same(torch.cat(steps, dim=1), ours(x))


def test_lightning_indexer_heads_share_a_selection_by_its_scores() -> None:
    """Their own weights do not change it."""
    ours = attention("lightning_indexer")
    x = torch.randn(1, 21, DIM)
    seen = ours.attention_map(x) > 0
    assert (seen == seen[:, :1]).all()
    with torch.no_grad():
        ours.query.weight.neg_()
    assert ((ours.attention_map(x) > 0) == seen).all()


def test_an_auxiliary_loss_is_neither_copied_nor_saved() -> None:
    ours = attention("lightning_indexer")
    x = torch.randn(1, 9, DIM)
    out = ours(x)
    twin = copy.deepcopy(ours)
    assert twin.auxiliary_loss is None and ours.auxiliary_loss is not None
    assert "auxiliary_loss" not in ours.state_dict()
    assert_same(twin(x), out)


@pytest.mark.slow
def test_an_auxiliary_loss_comes_out_of_a_compiled_model() -> None:
    torch.compiler.reset()
    ours = attention("lightning_indexer")
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for _ in range(2):
        x = torch.randn(1, 9, DIM)
        ours(x)
        expected = gradients_of_index_key(ours)
        compiled(x)
        assert_same(gradients_of_index_key(ours), expected)


def gradients_of_index_key(ours: Attention) -> Tensor:
    loss = take_auxiliary_loss(ours)
    assert loss is not None and take_auxiliary_loss(ours) is None
    return torch.autograd.grad(loss, ours.index_key.weight)[0]
