"""What a model costs: the figures are those of the equations, and counting leaves no trace."""

import math
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from attention_zoo.caches import TokenCache
from attention_zoo.tasks.analysis.costs import (
    cache_bytes,
    decode_state_bytes,
    training_flops_per_token,
)
from attention_zoo.tasks.configuration.build import build_task, parameter_counts
from attention_zoo.tasks.configuration.defaults import resolve_defaults
from attention_zoo.tasks.data.batches import LanguageBatch, TranslationBatch
from attention_zoo.tasks.data.tokenizers import ByteTokenizer
from attention_zoo.tasks.sweeps.launcher import register_launcher
from attention_zoo.tasks.training.language_modeling import LanguageModelingTask
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import family, mark_exhaustive

DIM, HIDDEN, LAYERS, HEADS = 16, 32, 2, 2
SIZES = ["model=tiny", f"model.dim={DIM}", f"model.ffn_dim={HIDDEN}", f"model.heads={HEADS}"]
SIZES += [f"model.layers={LAYERS}", "tokenizer=bytes"]
LENGTH, SOURCE, TARGET = 24, 9, 13
VOCABULARY = ByteTokenizer().vocabulary_size


def composed(*overrides, sizes=SIZES):
    """The resolved config of a training."""
    register_launcher("train")
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        config = compose("train", overrides=[*sizes, *overrides, "paths.run=run"])
    choices = resolve_defaults(config)
    plain = OmegaConf.to_container(config, resolve=True)
    return plain | {"choices": {"data": None} | choices}


def text():
    """Stands in for data of language modelling."""
    tokens = torch.full((1, LENGTH), 5)
    return LanguageBatch(tokens, tokens)


def pair():
    """Stands in for data of translation."""
    source, target = torch.full((1, SOURCE), 5), torch.full((1, TARGET), 5)
    return TranslationBatch(source, target, torch.zeros(1, dtype=torch.long))


def data(example):
    return SimpleNamespace(tokenizer=ByteTokenizer(), example_batch=example)


def built(config, example):
    """The task of a config, and data that have an example."""
    return build_task(config, ByteTokenizer()), data(example)


def language(*overrides):
    return built(composed("task=language_modeling", *overrides), text)


def of(attention):
    """A model of a mechanism, in a role that it can play."""
    if "causal" in ATTENTION.card(attention).roles:
        return language(f"attention={attention}", "position=sinusoidal")
    chosen = f"attention@encoder_attention={attention}"
    return built(composed(chosen, "position=sinusoidal"), pair)


@pytest.mark.parametrize(
    "attention",
    mark_exhaustive((name, family(name)) for name in ATTENTION),
)
def test_every_mechanism_has_its_costs(attention):
    task, example = of(attention)
    flops = training_flops_per_token(task, example)
    # Feed-forward and head alone come to this.
    assert flops > 3 * 2 * DIM * (LAYERS * 2 * HIDDEN + VOCABULARY) and math.isfinite(flops)
    state = decode_state_bytes(task, example)
    has_cache = bool(ATTENTION.card(attention).cache)
    if "causal" in ATTENTION.card(attention).roles:
        assert (state is not None) == has_cache
        assert state is None or state > 0


def test_the_flops_of_a_language_model_are_those_of_its_products():
    task, example = language("attention=multi_head", "position=rotary")
    projections, scores_and_sums = 4 * DIM * DIM, 2 * LENGTH * DIM
    layer = projections + scores_and_sums + 2 * DIM * HIDDEN
    forward = 2 * (LAYERS * layer + DIM * VOCABULARY)
    # A product's gradients are two products of the same size.
    assert training_flops_per_token(task, example) == 3 * forward


def test_the_flops_of_a_translation_are_by_its_target_tokens():
    task, example = built(composed("attention=multi_head"), pair)
    # The target's first token is given, and its last one is not read.
    read, written = SOURCE, TARGET - 1

    def attention(queries, keys):
        return (2 * queries + 2 * keys) * DIM * DIM + 2 * queries * keys * DIM

    encoder = attention(read, read) + 2 * read * DIM * HIDDEN
    decoder = attention(written, written) + attention(written, read) + 2 * written * DIM * HIDDEN
    forward = 2 * (LAYERS * (encoder + decoder) + written * DIM * VOCABULARY)
    assert training_flops_per_token(task, example) == 3 * forward / written


def test_what_has_to_be_computed_costs_what_is_only_counted():
    """Learned positions read their numbers, so that the model is run on the CPU."""
    counted = [
        count(*language(f"position={position}"))
        for position in ("learned", "sinusoidal")
        for count in (training_flops_per_token, decode_state_bytes)
    ]
    assert counted[:2] == counted[2:]


class OtherTask(LanguageModelingTask):
    """A task that defines `predict_batch`, in place of what that is made of."""

    def call_model(self, batch, **options):
        raise NotImplementedError

    def predict_batch(self, batch):
        return self.model(batch.inputs), batch.targets


def test_a_task_of_a_users_own_is_counted():
    task, example = language()
    expected = training_flops_per_token(task, example)
    task.__class__ = OtherTask
    assert training_flops_per_token(task, example) == expected


@pytest.mark.parametrize("attention", ["multi_head", "sliding_window"])
def test_a_backend_of_gpus_is_counted_in_its_plain_form(attention):
    plain, flex = (
        training_flops_per_token(*language(f"attention={attention}", f"attention.backend={name}"))
        for name in ("auto", "flex")
    )
    assert flex == plain


def test_what_extends_projections_is_counted_as_far_as_it_is_kept():
    """States of convolutions are; their elementwise work is not, nor that of mixing values."""
    options = ["+model.qkv_convolution=3", "+model.value_residual=true"]
    (task, example), (plain, _) = language(*options), language()
    bytes_of_state = decode_state_bytes(task, example) - decode_state_bytes(plain, example)
    assert bytes_of_state == 4 * LAYERS * 3 * DIM * (3 - 1)
    flops = [training_flops_per_token(x, example) for x in (task, plain)]
    assert flops[0] == flops[1]
    parameters = [parameter_counts(x.model)["parameters/attention"] for x in (task, plain)]
    assert parameters[0] - parameters[1] == LAYERS * 3 * DIM * 3 + 2 * (LAYERS - 1)


def test_a_loss_of_the_attentions_own_is_counted():
    task, example = of("lightning_indexer")
    parts = training_flops_per_token(task, example)
    assert parts > training_flops_per_token(*language("attention=multi_head"))


@pytest.mark.parametrize(
    ("attention", "numbers"),
    [
        ("multi_head", 2 * LENGTH * DIM),
        ("linear", HEADS * (DIM // HEADS) * (DIM // HEADS + 1)),
        ("sliding_window", 2 * 8 * DIM),
    ],
)
def test_the_decode_state_is_what_the_layers_keep(attention, numbers):
    options = ["attention.window=8"] if attention == "sliding_window" else []
    task, example = language(f"attention={attention}", "position=none", *options)
    assert decode_state_bytes(task, example) == LAYERS * numbers * 4


def test_room_for_more_tokens_is_not_counted():
    cache = TokenCache()
    with torch.no_grad():
        for _ in range(3):
            cache.append(keys=torch.zeros(2, 1, 1, 4))
    assert cache.growing["keys"].buffer.nbytes > cache_bytes(cache) == 2 * 3 * 4 * 4


def test_a_translation_keeps_its_source_too():
    state = decode_state_bytes(*built(composed("attention=multi_head"), pair))
    assert state == LAYERS * 2 * (SOURCE + TARGET - 1) * DIM * 4


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_counting_leaves_the_random_state_alone(position):
    task, example = language(f"position={position}", "model.dropout=0.5")
    state = torch.get_rng_state()
    training_flops_per_token(task, example)
    decode_state_bytes(task, example)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_training_is_the_same_to_the_bit_without_counting(train, monkeypatch):
    options = [*SIZES[:-1], "tokenizer=characters", "model.dropout=0.5", "position=learned"]
    options += ["data.source.size=60", "data.source.valid=8", "data.source.test=8"]
    options += ["callbacks=minimal", "logger=none", "test=false", "trainer.max_steps=3"]
    options += ["trainer.log_every_n_steps=1", "trainer.accelerator=cpu"]

    def trained():
        run = train(*options)
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        points = state["callbacks"]["History"]["points"]
        return points, state["state_dict"]

    losses, weights = trained()
    for name in ("training_flops_per_token", "decode_state_bytes"):
        monkeypatch.setattr(f"attention_zoo.tasks.commands.train.{name}", lambda *_: 1)
    bare_losses, bare_weights = trained()
    assert len(losses["train/loss"]) == 3 and losses == bare_losses
    assert all(torch.equal(weights[name], bare_weights[name]) for name in weights)
