"""Greedy and beam search against slow searches in plain Python, over a small model."""

import itertools
import logging
from importlib.resources import files

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from attention_zoo.decoding import Beam, Greedy
from attention_zoo.errors import Unsupported, UserError
from tests.decoding.toy_cache import ToyCache

PAD, BOS, EOS = 0, 1, 2
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}


class Toy(nn.Module):
    """The next token depends on the sum of the embeddings of target and source so far."""

    max_length = None

    def __init__(self, vocabulary=9, cached=True, seed=0, width=8):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def matrix(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.embedding = nn.Parameter(matrix(vocabulary, width))
        self.output = nn.Parameter(matrix(width, vocabulary) * 1.5)
        self.cached = cached
        self.longest = 0
        self.rows = []
        self.eval()

    def encode(self, source, source_mask):
        return (self.embedding[source] * source_mask[..., None]).cumsum(1)

    def decode(self, target, memory, source_mask, *, cache=None):
        self.rows.append(len(target))
        sums = self.embedding[target].cumsum(1)
        length = target.shape[1]
        if cache is not None:
            sums = sums + cache.sums
            cache.sums = sums[:, -1:]
            cache.length += length
            length = cache.length
        self.longest = max(self.longest, length)
        memory, source_mask = (
            x.repeat_interleave(len(target) // len(memory), 0) for x in (memory, source_mask)
        )
        last = (source_mask.sum(1) - 1)[:, None, None].expand(-1, 1, memory.shape[2])
        return torch.sin(sums + memory.gather(1, last)) @ self.output

    def new_cache(self):
        if not self.cached:
            raise Unsupported("toy cannot cache.")
        return ToyCache()

    def log_probabilities(self, source, prefix):
        """Return log p(next | prefix) as a list, for one sentence without padding."""
        source = torch.tensor([source])
        source_mask = torch.ones_like(source, dtype=torch.bool)
        with torch.no_grad():
            logits = self.decode(
                torch.tensor([[BOS, *prefix]]), self.encode(source, source_mask), source_mask
            )
        return torch.log_softmax(logits[0, -1].double(), -1).tolist()


SENTENCES = [[5, 3, 4, EOS], [EOS], [8, 8, 7, 6, 5, 4, 3, EOS], [3, 6, EOS], [7, EOS]]


def batch(sentences):
    longest = max(map(len, sentences))
    source = torch.tensor([row + [PAD] * (longest - len(row)) for row in sentences])
    return source, source != PAD


def search(searcher, model, sentences=SENTENCES):
    return searcher(model, *batch(sentences), **IDS)


def assert_hypotheses(found, wanted):
    assert [[list(h.tokens) for h in row] for row in found] == [
        [list(tokens) for tokens, _ in row] for row in wanted
    ]
    for row, other in zip(found, wanted, strict=True):
        assert [h.score for h in row] == pytest.approx([score for _, score in other], abs=1e-9)


def plain_greedy(model, source, limit):
    tokens, total = [], 0.0
    while True:
        scores = model.log_probabilities(source, tokens)
        choices = [EOS] if len(tokens) == limit else range(EOS, len(scores))
        token = max(choices, key=lambda choice: scores[choice])
        total += scores[token]
        if token == EOS:
            return [(tokens, total)]
        tokens.append(token)


def plain_beam(model, source, limit, width, penalty, n_best):
    """The rule of `Beam` without stopping early: all is searched up to the limit."""
    live, ended = [((), 0.0)], []
    while live:
        extended = []
        for tokens, total in live:
            scores = model.log_probabilities(source, tokens)
            choices = [EOS] if len(tokens) == limit else range(EOS, len(scores))
            extended += [((*tokens, token), total + scores[token]) for token in choices]
        extended.sort(key=lambda pair: -pair[1])
        best = extended[:width]
        ended += [
            (tokens[:-1], total / ((5 + len(tokens)) / 6) ** penalty)
            for tokens, total in best
            if tokens[-1] == EOS
        ]
        live = [pair for pair in best if pair[0][-1] != EOS]
    return sorted(ended, key=lambda pair: -pair[1])[:n_best]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_takes_the_likeliest_token(seed, cached):
    model = Toy(seed=seed, cached=cached)
    found = search(Greedy(max_ratio=1.0, max_extra=3), model)
    assert_hypotheses(found, [plain_greedy(model, row, len(row) + 3) for row in SENTENCES])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("width, n_best", [(1, 1), (2, 1), (3, 3), (5, 2), (40, 5)])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 3.0])
def test_beam_is_the_plain_beam(seed, cached, width, n_best, penalty):
    model = Toy(seed=seed, cached=cached)
    found = search(
        Beam(width=width, length_penalty=penalty, n_best=n_best, max_ratio=1.0, max_extra=3), model
    )
    assert_hypotheses(
        found,
        [plain_beam(model, row, len(row) + 3, width, penalty, n_best) for row in SENTENCES],
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_beam_of_1_is_greedy(seed):
    model = Toy(seed=seed)
    greedy = search(Greedy(), model)
    beam = search(Beam(width=1, length_penalty=1.0), model)
    assert [row[0].tokens for row in beam] == [row[0].tokens for row in greedy]
    plain = search(Beam(width=1, length_penalty=0.0), model)
    assert [row[0].score for row in plain] == pytest.approx([row[0].score for row in greedy])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_is_exhaustive_search(penalty):
    model = Toy(vocabulary=6)
    words, limit = [3, 4, 5], 3
    every = []
    for length in range(limit + 1):
        for tokens in itertools.product(words, repeat=length):
            total = sum(
                model.log_probabilities([4, EOS], tokens[:i])[word]
                for i, word in enumerate([*tokens, EOS])
            )
            every.append((tokens, total / ((5 + length + 1) / 6) ** penalty))
    assert len(every) == 40
    every.sort(key=lambda pair: -pair[1])
    beam = Beam(width=200, n_best=40, length_penalty=penalty, max_ratio=0, max_extra=limit)
    assert_hypotheses(search(beam, model, [[4, EOS]]), [every])
    more = Beam(width=200, n_best=50, length_penalty=penalty, max_ratio=0, max_extra=limit)
    assert_hypotheses(search(more, model, [[4, EOS]]), [every])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("searcher", [Greedy(), Beam(n_best=2), Beam(width=7, length_penalty=2.0)])
def test_a_batch_decodes_as_its_sentences_alone(searcher, cached):
    model = Toy(seed=3, cached=cached)
    together = search(searcher, model)
    assert_hypotheses(together, [search(searcher, model, [row])[0] for row in SENTENCES])
    backwards = search(searcher, model, SENTENCES[::-1])
    assert_hypotheses(backwards, together[::-1])


@pytest.mark.parametrize("searcher", [Greedy(), Beam()])
def test_rows_that_end_are_no_longer_computed(searcher):
    model = Toy(seed=3)
    search(searcher, model)
    assert model.rows[-1] < max(model.rows)


@pytest.mark.parametrize("searcher", [Greedy(), Beam(n_best=4)])
@pytest.mark.parametrize("unwanted", [PAD, BOS])
def test_pad_and_bos_are_never_generated(searcher, unwanted):
    model = Toy()
    model.embedding.data.abs_()
    # The unwanted token is by far the likeliest, wherever the sine is positive.
    model.output.data[:, unwanted] = 50.0
    for row in search(searcher, model):
        for hypothesis in row:
            assert not {PAD, BOS, EOS} & set(hypothesis.tokens)


class Endless(Toy):
    """Never wants to end."""

    def decode(self, target, memory, source_mask, *, cache=None):
        logits = super().decode(target, memory, source_mask, cache=cache).clone()
        logits[..., EOS] = -80.0
        return logits


@pytest.mark.parametrize("make", [Greedy, Beam])
@pytest.mark.parametrize("max_ratio, max_extra", [(0, 4), (1.5, 0), (2.0, 3)])
def test_the_limit_follows_the_length_of_each_source(make, max_ratio, max_extra):
    found = search(make(max_ratio=max_ratio, max_extra=max_extra), Endless())
    assert [len(row[0].tokens) for row in found] == [
        int(len(row) * max_ratio) + max_extra for row in SENTENCES
    ]


@pytest.mark.parametrize("make", [Greedy, Beam])
@pytest.mark.parametrize("cached", [True, False])
def test_a_model_never_reads_beyond_its_max_length(make, cached):
    model = Endless(cached=cached)
    model.max_length = 5
    found = search(make(max_ratio=2.0, max_extra=3), model)
    assert model.longest == 5
    assert {len(row[0].tokens) for row in found} == {4}


def test_an_output_may_be_empty():
    model = Toy()
    model.output.data.zero_()
    model.output.data[:, EOS] = 1.0
    model.embedding.data.fill_(0.01)
    for searcher in (Greedy(), Beam()):
        assert [row[0].tokens for row in search(searcher, model)] == [[]] * len(SENTENCES)


@pytest.mark.parametrize("searcher", [Greedy(), Beam()])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_refused(searcher, value):
    model = Toy()
    model.output.data[:] = value
    with pytest.raises(UserError, match="must be finite, but at step 1"):
        search(searcher, model)


def test_one_bad_row_is_enough():
    model = Toy()
    model.embedding.data[7] = torch.nan
    with pytest.raises(UserError, match="must be finite"):
        search(Beam(), model, [[3, EOS], [7, EOS]])


@pytest.mark.parametrize("searcher", [Greedy(), Beam()])
def test_a_model_in_training_mode_is_refused(searcher):
    with pytest.raises(UserError, match="evaluation mode"):
        search(searcher, Toy().train())


class Half(Toy):
    def decode(self, target, memory, source_mask, *, cache=None):
        return super().decode(target, memory, source_mask, cache=cache).bfloat16()


@pytest.mark.parametrize("seed", range(3))
def test_half_precision_is_summed_in_float32(seed):
    model = Half(seed=seed)
    for row, source in zip(search(Greedy(), model), SENTENCES, strict=True):
        [(tokens, score)] = row
        total = sum(
            model.log_probabilities(source, tokens[:i])[word]
            for i, word in enumerate([*tokens, EOS])
        )
        assert score == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize(
    "options, rule",
    [
        ({"width": 0}, "width must be at least 1"),
        ({"n_best": 0}, "n_best must be at least 1"),
        ({"width": 2, "n_best": 3}, "n_best must be at least 1 and at most width"),
        ({"length_penalty": -0.1}, "length_penalty must not be negative"),
        ({"length_penalty": 1e30}, "length_penalty must be at most 10"),
        ({"max_ratio": 1e30}, "max_ratio and max_extra must be at most 1,000,000"),
        ({"max_extra": 10**12}, "max_ratio and max_extra must be at most 1,000,000"),
        ({"max_ratio": -1}, "max_ratio and max_extra must not be negative"),
        ({"max_extra": -1}, "max_ratio and max_extra must not be negative"),
        ({"max_ratio": 0, "max_extra": 0}, "nor both 0"),
    ],
)
def test_impossible_options_are_refused(options, rule):
    with pytest.raises(UserError, match=rule):
        Beam(**options)


def test_searching_without_a_cache_is_logged(caplog):
    class Refuses(Toy):
        def new_cache(self):
            raise Unsupported("toy of this test cannot cache.")

    with caplog.at_level(logging.INFO, logger="attention_zoo"):
        search(Greedy(), Refuses())
        search(Greedy(), Refuses())
    assert caplog.text.count("toy of this test cannot cache") == 1


@pytest.mark.parametrize("name, kind", [("greedy", Greedy), ("beam", Beam)])
def test_the_yaml_makes_the_search_with_its_defaults(name, kind):
    hydra = pytest.importorskip("hydra.utils")

    config = OmegaConf.create(
        files("attention_zoo.conf").joinpath(f"decoding/{name}.yaml").read_text()
    )
    made = hydra.instantiate(config)
    assert type(made) is kind
    assert vars(made) == vars(kind())
