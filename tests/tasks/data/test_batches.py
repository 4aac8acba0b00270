import itertools
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import (
    BlockDataset,
    JaggedArray,
    PairDataset,
    TranslationBatch,
)
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import (
    Batches,
    EpochSampler,
    FixedBatchSampler,
    RandomBlockSampler,
    ShuffledBlockSampler,
    ShuffledRowSampler,
    TokenBudgetSampler,
    consecutive_batches,
)
from attention_zoo.tasks.data.tokenizers import BOS

GENERATOR = np.random.default_rng(0)
SOURCE = GENERATOR.integers(2, 40, size=997)
TARGET = np.clip(SOURCE + GENERATOR.integers(-4, 5, size=997), 3, None)
WORLDS = [1, 2, 3, 4]


def budget(**arguments) -> TokenBudgetSampler:
    return TokenBudgetSampler(SOURCE, TARGET, tokens_per_batch=256, **arguments)


def ordered_budget(**arguments) -> EpochSampler:
    return FixedBatchSampler(budget().batches_by_length(), **arguments)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("make", [budget, ordered_budget])
@pytest.mark.parametrize("epoch", [0, 3])
def test_ranks_take_every_pair_once_in_as_many_steps(make, world_size: int, epoch: int) -> None:
    ranks = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
    for rank in ranks:
        rank.set_epoch(epoch)
    batches = [list(rank) for rank in ranks]
    assert len({len(taken) for taken in batches}) == 1
    assert len(ranks[0]) == len(batches[0])
    rows = [row for taken in batches for batch in taken for row in batch]
    assert sorted(rows) == list(range(997))


@pytest.mark.parametrize("make", [budget, ordered_budget])
def test_the_budget_holds_on_both_sides(make) -> None:
    sampler = make()
    for batch in sampler:
        assert len(batch) * SOURCE[batch].max() <= 256
        assert len(batch) * TARGET[batch].max() <= 256


def test_batches_hold_pairs_of_like_length() -> None:
    real = SOURCE.sum() + TARGET.sum()
    padded = sum(len(b) * (SOURCE[b].max() + TARGET[b].max()) for b in budget())
    assert 1 - real / padded < 0.12


def test_orders_depend_on_seed_and_epoch_alone() -> None:
    first, again, other = budget(seed=1), budget(seed=1), budget(seed=2)
    assert list(first) == list(again)
    assert list(first) != list(other)
    orders = []
    for epoch in range(4):
        first.set_epoch(epoch)
        orders.append(list(first))
    assert len({len(order) for order in orders}) == 1
    members = [frozenset(map(frozenset, order)) for order in orders]
    assert len(set(members)) == 4
    again.set_epoch(3)
    assert list(again) == orders[3]


def rows_by_step(steps: Iterator[Sequence[np.ndarray]]) -> list[list[int]]:
    return [sorted(int(row) for batch in step for row in batch) for step in steps]


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 24, 25, 29, 31, 997])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_step_of_all_ranks_takes_what_one_process_accumulates(
    rows: int, world_size: int, epoch: int
) -> None:
    def batches(rank: int, world_size: int) -> Batches:
        sampler = ShuffledRowSampler(rows, batch_size=4, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        return sampler.rank_batches()

    ranks = [batches(rank, world_size) for rank in range(world_size)]
    accumulated = itertools.zip_longest(*[iter(batches(0, 1))] * world_size, fillvalue=[])
    assert rows_by_step(zip(*ranks, strict=True)) == rows_by_step(accumulated)


def test_a_rank_without_a_sample_keeps_step_and_predicts_nothing() -> None:
    def load(rank: int) -> list[TranslationBatch]:
        pairs = PairDataset(
            jagged([7, 2], [8, 9, 2], [7, 2]),
            jagged([1, 5, 2], [1, 5, 6, 2], [1, 4, 2]),
            np.arange(3),
        )
        sampler = ShuffledRowSampler(3, batch_size=2, rank=rank, world_size=4)
        return list(ResumableLoader(pairs, sampler))

    ranks = [load(rank) for rank in range(4)]
    assert [len(rank) for rank in ranks] == [1, 1, 1, 1]
    targets = [(rank[0].target > BOS).sum().item() > 0 for rank in ranks]
    assert targets == [True, True, True, False]


def test_a_pair_beyond_the_budget_is_a_batch_of_its_own() -> None:
    lengths = np.array([3, 500, 4])
    sampler = TokenBudgetSampler(lengths, lengths, tokens_per_batch=100)
    assert [batch.tolist() for batch in sampler.batches_by_length()] == [[0, 2], [1]]


def test_fewer_samples_to_evaluate_than_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="got 2 for 3 processes"):
        FixedBatchSampler(consecutive_batches(np.arange(2), 2), world_size=3)


def test_the_batches_of_a_large_text_take_little_memory() -> None:
    blocks = 500_000
    sampler = ShuffledBlockSampler(64 * blocks, context_length=64, batch_size=4)
    tracemalloc.start()
    try:
        iterator = iter(sampler)
        first = next(iterator)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first == next(iter(sampler))
    # The order, in four bytes a block, and the ends of the batches while they are made.
    assert peak < 20 * blocks


def jagged(*rows: list[int]) -> JaggedArray:
    return JaggedArray.from_rows(rows)


def test_pairs_are_padded_on_the_right() -> None:
    pairs = PairDataset(
        jagged([7, 2], [8, 9, 2]), jagged([1, 5, 6, 2], [1, 2]), np.array([4, 11], dtype=np.int64)
    )
    batch = pairs[[1, 0]]
    assert batch.source.tolist() == [[8, 9, 2], [7, 2, 0]]
    assert batch.target.tolist() == [[1, 2, 0, 0], [1, 5, 6, 2]]
    assert batch.index.tolist() == [11, 4]
    assert batch.source.dtype == batch.target.dtype == batch.index.dtype == torch.long


STREAM = np.array(
    [1, *range(10, 40), 2, 1, *range(50, 55), 2, 1, *range(60, 90), 2], dtype=np.int32
)


@pytest.mark.parametrize("context_length", [1, 7, 16, 65, 200])
@pytest.mark.parametrize("world_size", WORLDS)
def test_an_evaluation_predicts_every_token_once(context_length: int, world_size: int) -> None:
    blocks = BlockDataset(STREAM, context_length=context_length)
    batches = consecutive_batches(blocks.indices(), 2)
    if -(-(len(STREAM) - 1) // context_length) < world_size:
        with pytest.raises(UserError, match="sample for each process"):
            list(FixedBatchSampler(batches, world_size=world_size))
        return
    targets: list[int] = []
    steps = set()
    for rank in range(world_size):
        sampler = FixedBatchSampler(batches, rank=rank, world_size=world_size)
        steps.add(len(list(sampler)))
        for starts in sampler:
            batch = blocks[starts]
            assert batch.inputs.shape == batch.targets.shape == (len(starts), context_length)
            targets += batch.targets[batch.targets != -100].tolist()
    assert len(steps) == 1
    assert sorted(targets) == sorted(token for token in STREAM.tolist() if token != 1)


def test_targets_are_the_next_inputs_and_never_a_bos() -> None:
    batch = BlockDataset(STREAM, context_length=16)[[25]]
    window = STREAM[25:42].tolist()
    assert batch.inputs.tolist() == [window[:-1]]
    assert batch.targets.tolist() == [[-100 if token == 1 else token for token in window[1:]]]
    assert batch.segment_ids is None


def test_segments_number_the_documents_of_a_block() -> None:
    batch = BlockDataset(STREAM, context_length=16, documents=True)[[28]]
    assert batch.inputs.tolist()[0] == STREAM[28:44].tolist()
    assert batch.segment_ids is not None
    assert batch.segment_ids.tolist() == [[0] * 4 + [1] * 7 + [2] * 5]


@pytest.mark.parametrize("sampling", [ShuffledBlockSampler, RandomBlockSampler])
@pytest.mark.parametrize("tokens", [17, 33, 1000])
@pytest.mark.parametrize("world_size", WORLDS)
def test_train_blocks_are_whole_and_as_many_on_every_rank(sampling, tokens, world_size) -> None:
    counts = set()
    for rank in range(world_size):
        sampler = sampling(
            tokens, context_length=16, batch_size=3, rank=rank, world_size=world_size, seed=1
        )
        for epoch in range(5):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            counts.add(len(batches))
            for starts in batches:
                assert 1 <= len(starts) <= 3
                assert min(starts) >= 0 and max(starts) + 16 < tokens
    assert len(counts) == 1


def test_shuffled_blocks_do_not_overlap_and_move_with_the_epoch() -> None:
    sampler = ShuffledBlockSampler(1000, context_length=16, batch_size=4)
    offsets = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        starts = np.sort(np.concatenate(list(sampler)))
        assert (np.diff(starts) == 16).all()
        offsets.add(int(starts[0]))
    assert len(offsets) > 3


def test_random_blocks_come_from_everywhere_and_may_repeat() -> None:
    sampler = RandomBlockSampler(1000, context_length=16, batch_size=4)
    starts: list[int] = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        starts += [start for batch in sampler for start in batch]
    assert min(starts) == 0 and max(starts) == 1000 - 17
    assert len({start % 16 for start in starts}) == 16


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"got 16 tokens and data\.context_length=16; lower"):
        ShuffledBlockSampler(16, context_length=16, batch_size=1)


def loader(**arguments) -> ResumableLoader:
    rows = jagged(*([5] * length for length in SOURCE))
    return ResumableLoader(
        PairDataset(rows, jagged(*([6] * length for length in TARGET)), np.arange(997)),
        budget(**arguments),
    )


def test_a_loader_goes_on_where_its_state_was_taken() -> None:
    whole = loader(seed=3)
    whole.sampler.set_epoch(2)
    expected = [batch.index.tolist() for batch in whole]

    stopped = loader(seed=3)
    stopped.sampler.set_epoch(2)
    iterator = iter(stopped)
    seen = [next(iterator).index.tolist() for _ in range(5)]
    resumed = loader(seed=3)
    resumed.load_state_dict(stopped.state_dict())
    resumed.sampler.set_epoch(2)
    assert seen + [batch.index.tolist() for batch in resumed] == expected
    assert len(list(resumed)) == len(expected)


def test_the_state_of_a_finished_epoch_starts_the_next_one_whole() -> None:
    finished = loader()
    count = len(list(finished))
    resumed = loader()
    resumed.load_state_dict(finished.state_dict())
    assert len(list(resumed)) == count


def test_the_state_of_other_processes_is_refused() -> None:
    state = loader(world_size=2).state_dict()
    with pytest.raises(UserError, match="epoch of 2 processes, got 1"):
        loader().load_state_dict(state)


def order_hash(**arguments) -> str:
    stream = np.arange(2000) % 90 + 4
    context_length = arguments.pop("context_length", 16)
    sampler = ShuffledBlockSampler(
        len(stream), context_length=context_length, **{"batch_size": 2, "seed": 1, **arguments}
    )
    return ResumableLoader(
        BlockDataset(stream, context_length=context_length), sampler
    ).order_hash()


@pytest.mark.parametrize("other", [{"seed": 2}, {"batch_size": 4}, {"context_length": 15}])
def test_another_order_has_another_hash(other: dict[str, int]) -> None:
    assert order_hash() == order_hash()
    assert order_hash(**other) != order_hash()


def test_the_hash_of_an_order_is_the_same_on_all_ranks_and_in_all_epochs() -> None:
    # 62 batches, which two ranks share.
    assert order_hash(rank=0, world_size=2) == order_hash(rank=1, world_size=2) == order_hash()
    # Four ranks need 64, so the last two are divided.
    assert order_hash(world_size=4) != order_hash()
    resumed = loader()
    whole = resumed.order_hash()
    resumed.sampler.set_epoch(3)
    resumed.sampler.skip_batches = 2
    assert resumed.order_hash() == whole
    assert next(iter(resumed)) is not None


def test_other_tokens_have_another_hash() -> None:
    streams = [np.arange(100) % 50 + start for start in (4, 5)]
    hashes = {
        ResumableLoader(
            BlockDataset(stream, context_length=8),
            ShuffledBlockSampler(100, context_length=8, batch_size=2),
        ).order_hash()
        for stream in streams
    }
    assert len(hashes) == 2
