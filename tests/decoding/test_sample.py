"""Sampling: the distribution it draws from, prompts of different lengths, and what it refuses."""

import math
from importlib.resources import files

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from attention_zoo.decoding import Sample
from attention_zoo.errors import Unsupported, UserError
from tests.decoding.toy_cache import ToyCache

PAD, BOS, EOS = 0, 1, 2
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
PROMPTS = [[BOS, 5], [BOS, 3, 4, 5, 6, 7], [BOS], [BOS, 8, 8]]


class Toy(nn.Module):
    """The next token depends on the sum of the embeddings of the real tokens so far."""

    max_length = None

    def __init__(self, vocabulary=9, cached=True, width=8):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(vocabulary, width, generator=generator))
        self.output = nn.Parameter(torch.randn(width, vocabulary, generator=generator))
        self.cached = cached
        self.seen = []
        self.eval()

    def forward(self, tokens, *, key_mask=None, segment_ids=None, cache=None):
        before = 0 if cache is None else cache.length
        total = before + tokens.shape[1]
        self.seen.append(total)
        if key_mask is None:
            key_mask = torch.ones(len(tokens), total, dtype=torch.bool)
        assert key_mask.shape == (len(tokens), total)
        sums = (self.embedding[tokens] * key_mask[:, before:, None]).cumsum(1)
        if cache is not None:
            sums = sums + cache.sums
            cache.sums, cache.length = sums[:, -1:], total
        return torch.sin(sums) @ self.output

    def new_cache(self):
        if not self.cached:
            raise Unsupported("toy cannot cache.")
        return ToyCache()


class Fixed(nn.Module):
    """Has the same distribution at every step."""

    max_length = 1

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.eval()

    def forward(self, tokens, *, key_mask=None, segment_ids=None, cache=None):
        return self.logits.expand(*tokens.shape, -1).clone()

    def new_cache(self):
        raise Unsupported("fixed has nothing to cache.")


# pad, bos and eos included: pad has mass that must go to the others.
PROBABILITIES = [0.1, 0.02, 0.08, 0.3, 0.25, 0.15, 0.06, 0.04]
# Of the chi-square distribution with 1 to 7 degrees of freedom, 99.9 %.
CRITICAL = [None, 10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322]


def softened(temperature):
    weights = [0.0] + [p ** (1 / temperature) for p in PROBABILITIES[1:]]
    return [weight / sum(weights) for weight in weights]


def only(mass, kept):
    left = [value if token in kept else 0.0 for token, value in enumerate(mass)]
    return [value / sum(left) for value in left]


EVERY = softened(1.0)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, EVERY),
        ({"temperature": 0.5}, softened(0.5)),
        ({"temperature": 3.0}, softened(3.0)),
        ({"top_k": 3}, only(EVERY, {3, 4, 5})),
        ({"top_k": 100}, EVERY),
        ({"top_p": 1.0}, EVERY),
        # Without pad the likeliest are 1/3, 5/18, 1/6, 4/45: 0.6 is in two, 0.62 needs three.
        ({"top_p": 0.6}, only(EVERY, {3, 4})),
        ({"top_p": 0.62}, only(EVERY, {3, 4, 5})),
        ({"top_p": 0.01}, only(EVERY, {3})),
        # Of the three likeliest 3/7, 5/14, 3/14: two hold 0.786.
        ({"top_k": 3, "top_p": 0.78}, only(EVERY, {3, 4})),
        ({"top_k": 3, "top_p": 0.79}, only(EVERY, {3, 4, 5})),
        ({"temperature": 0.5, "top_p": 0.83}, only(softened(0.5), {3, 4, 5})),
    ],
)
def test_the_distribution_is_the_stated_one(options, expected):
    rows = 20_000
    sample = Sample(**options, seed=7, max_tokens=1)
    [drawn] = list(sample.stream(Fixed(PROBABILITIES), [[BOS]] * rows, **IDS))
    counts = torch.bincount(drawn, minlength=len(PROBABILITIES)).tolist()
    # bos and eos end a row, which shows as pad.
    ends = expected[BOS] + expected[EOS]
    expected = [ends, 0.0, 0.0, *expected[3:]]
    assert all(count == 0 for count, mass in zip(counts, expected, strict=True) if mass == 0)
    pairs = [(count, mass * rows) for count, mass in zip(counts, expected, strict=True) if mass]
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    if len(pairs) > 1:
        assert statistic < CRITICAL[len(pairs) - 1]


def test_the_chi_square_test_sees_a_wrong_temperature():
    rows = 20_000
    sample = Sample(temperature=1.1, seed=7, max_tokens=1)
    [drawn] = list(sample.stream(Fixed(PROBABILITIES), [[BOS]] * rows, **IDS))
    counts = torch.bincount(drawn, minlength=len(PROBABILITIES)).tolist()[3:]
    expected = [mass * rows for mass in EVERY[3:]]
    assert sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True)) > CRITICAL[5]


@pytest.mark.parametrize("cached", [True, False])
def test_temperature_0_takes_the_likeliest_token(cached):
    model = Toy(cached=cached)
    found = Sample(temperature=0, max_tokens=12)(model, PROMPTS, **IDS)
    for prompt, row in zip(PROMPTS, found, strict=True):
        text = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                logits = Toy(cached=False)(torch.tensor([text]))[0, -1]
            token = max(range(1, len(logits)), key=logits.tolist().__getitem__)
            if token in (BOS, EOS):
                break
            text.append(token)
        assert row == text[len(prompt) :]
    assert any(found)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}])
def test_greedy_prompts_of_different_lengths_go_on_as_they_would_alone(options):
    model = Toy()
    sample = Sample(**options, max_tokens=9)
    together = sample(model, PROMPTS, **IDS)
    assert together == [sample(model, [prompt], **IDS)[0] for prompt in PROMPTS]
    assert len({tuple(row) for row in together}) > 1


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"temperature": 2.0, "top_p": 0.9}])
def test_with_a_cache_and_without_the_text_is_the_same(options):
    sample = Sample(**options, max_tokens=30, seed=3)
    cached = sample(Toy(), PROMPTS, **IDS)
    assert cached == sample(Toy(cached=False), PROMPTS, **IDS)
    assert max(map(len, cached)) > 1


def test_a_cached_model_reads_every_token_once():
    model = Toy()
    list(Sample(temperature=0, max_tokens=4).stream(model, [[BOS, 3, 4]], **IDS))
    assert model.seen == list(range(3, 3 + len(model.seen)))


def test_the_seed_decides_and_without_one_the_global_generator():
    model = Toy()
    prompts = PROMPTS * 4
    first = Sample(seed=1)(model, prompts, **IDS)
    assert first == Sample(seed=1)(model, prompts, **IDS)
    assert first != Sample(seed=2)(model, prompts, **IDS)
    torch.manual_seed(5)
    free = Sample()(model, prompts, **IDS)
    assert free != Sample()(model, prompts, **IDS)
    torch.manual_seed(5)
    assert free == Sample()(model, prompts, **IDS)
    state = torch.get_rng_state()
    Sample(seed=1)(model, prompts, **IDS)
    assert torch.equal(state, torch.get_rng_state())


def test_the_stream_brings_the_same_tokens_one_by_one():
    sample = Sample(seed=11, max_tokens=40)
    model = Toy()
    whole = sample(model, PROMPTS, **IDS)
    steps = []
    for drawn in sample.stream(model, PROMPTS, **IDS):
        assert drawn.shape == (len(PROMPTS),)
        # A reader of the stream may train between two tokens.
        assert not torch.is_inference_mode_enabled()
        steps.append(drawn.tolist())
    assert [[t for t in row if t != PAD] for row in zip(*steps, strict=True)] == whole
    # A row that has ended stays so.
    for row in zip(*steps, strict=True):
        text = list(row)
        assert PAD not in text[: len([t for t in text if t != PAD])]
    assert any(PAD in row for row in steps)


def test_the_stream_is_lazy():
    model = Toy()
    stream = Sample(seed=0, max_tokens=10).stream(model, [[BOS, 3]], **IDS)
    assert model.seen == []
    next(stream)
    assert len(model.seen) == 1


def test_no_more_than_max_tokens_and_no_special_token():
    uniform = Fixed([0.3, 0.001, 0.001, 0.349, 0.349])
    found = Sample(max_tokens=20, seed=0)(uniform, [[3]] * 200, **IDS)
    assert max(map(len, found)) == 20
    assert {token for row in found for token in row} == {3, 4}


@pytest.mark.parametrize("end", [BOS, EOS])
def test_a_row_ends_at_eos_and_at_the_next_document(end):
    mass = [0.0, 0.0, 0.0, 0.0]
    mass[end] = 1.0
    assert Sample(max_tokens=5)(Fixed(mass), [[3], [3, 3]], **IDS) == [[], []]


@pytest.mark.parametrize("cached", [True, False])
def test_a_model_with_a_max_length_sees_the_last_tokens(cached):
    model = Toy(cached=cached)
    model.output.data[:, [BOS, EOS]] = 0.0
    model.output.data[0, 3:] += 9.0
    model.max_length = 4
    prompts = [[BOS, 5], [3, 4, 5, 6, 7, 8]]
    found = Sample(temperature=0, max_tokens=9)(model, prompts, **IDS)
    assert max(model.seen) == 4
    for prompt, row in zip(prompts, found, strict=True):
        # The longer prompt moves both windows.
        text = [PAD] * (6 - len(prompt)) + prompt
        for token in row:
            window = torch.tensor([text[-4:]])
            with torch.no_grad():
                logits = Toy.forward(model, window, key_mask=window != PAD)[0, -1]
            assert token == 1 + int(logits[1:].argmax())
            text.append(token)


@pytest.mark.parametrize(
    "options, rule",
    [
        ({"temperature": -0.5}, "temperature must be 0, or 1e-06 or more"),
        ({"temperature": 1e-39}, "temperature must be 0, or 1e-06 or more"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p must be a finite number"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, rule):
    with pytest.raises(UserError, match=rule):
        Sample(**options)


@pytest.mark.parametrize("prompts", [[], [[]], [[3], []]])
def test_empty_prompts_are_refused(prompts):
    with pytest.raises(UserError, match="at least one token"):
        Sample()(Toy(), prompts, **IDS)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_nan_logits_are_refused(temperature):
    model = Toy()
    model.output.data[2, 3] = torch.nan
    with pytest.raises(UserError, match="must be finite, but at step 1"):
        Sample(temperature=temperature)(model, PROMPTS, **IDS)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(UserError, match="evaluation mode"):
        Sample()(Toy().train(), PROMPTS, **IDS)


def test_the_yaml_makes_it_with_its_defaults():
    text = files("attention_zoo.conf").joinpath("decoding/sample.yaml").read_text()
    made = instantiate(OmegaConf.create(text))
    assert type(made) is Sample
    assert vars(made) == vars(Sample())
