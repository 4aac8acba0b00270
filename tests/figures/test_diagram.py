"""The diagram of a model says what the model is."""

from functools import partial

import pytest
import torch
from torch import nn

from attention_zoo import create_attention, create_position
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.tasks.views.figures.blueprint import columns
from attention_zoo.tasks.views.figures.diagram import architecture
from tests.figures.canvas import assert_legible, shown_texts

SIZES = {"vocabulary_size": 1200, "dim": 16, "ffn_dim": 40, "layers": 2}


def attention(name, **options):
    return partial(create_attention, name, heads=4, **options)


def translator(position="rotary", *, causal="multi_head", cross="multi_head", **options):
    return Seq2Seq(
        **SIZES | options,
        pad_id=0,
        encoder_attention=attention("multi_head"),
        decoder_attention=attention(causal),
        cross_attention=attention(cross),
        position=partial(create_position, position),
    )


def language_model(attention, position="rotary", *, layers=2, **options):
    factory = partial(create_position, position, **options)
    return LanguageModel(**SIZES | {"layers": layers}, attention=attention, position=factory)


def alternating(*, layer, **options):
    """Every third layer sees everything, as in models of long text."""
    if layer % 3 == 2:
        return create_attention("multi_head", heads=4, layer=layer, **options)
    return create_attention("sliding_window", heads=4, window=8, layer=layer, **options)


def texts(model):
    """All that the diagram says, from below to above, the left column first."""
    figure = architecture(model)
    shown = [text.get_text() for text in shown_texts(figure)]
    assert_legible(figure)
    return shown


def count(module):
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def boxes(column, kind):
    return [
        box
        for run in column.runs
        for branch in run.branches
        for box in (*branch.beside, *branch.behind)
        if box.kind == kind
    ]


def test_a_translator_is_drawn_with_its_sizes():
    model = translator(activation="swiglu", norm="rms", encoder_layers=3)
    shown = texts(model)
    for fact, times in {
        f"Seq2Seq, {count(model)} parameters": 1,
        f"{count(model.encoder)} parameters": 1,
        f"{count(model.decoder)} parameters": 1,
        count(model.encoder.layers[0]): 1,
        "1,200 × 16": 2,
        "the source's table": 1,
        "16 → 1,200": 1,
        "the embedding's table": 1,
        "16 → 40 → 16": 2,
        "swiglu": 2,
        "multi_head, 4 heads": 3,
        "rotary on queries and keys": 2,  # not in cross-attention
        "RMSNorm": 2 + 3 + 2,
        "+": 5,
        "× 3": 1,
        "× 2": 1,
        "memory": 1,
    }.items():
        assert shown.count(fact) == times, fact


def test_each_role_has_its_own_mechanism():
    encoder, decoder = columns(translator("sinusoidal", causal="linear", cross="additive"))
    assert [(box.title, box.facts) for box in boxes(encoder, "attention")] == [
        ("global self-attention", ("multi_head, 4 heads",))
    ]
    assert [(box.title, box.facts) for box in boxes(decoder, "attention")] == [
        ("causal self-attention", ("linear, 4 heads",)),
        ("cross-attention", ("additive, 4 heads",)),
    ]
    assert [branch.reads_memory for branch in decoder.runs[0].branches] == [False, True, False]


@pytest.mark.parametrize(
    ("order", "beside", "behind", "last"),
    [("pre", ["norm", "attention"], [], ["norm"]), ("post", ["attention"], ["norm"], [])],
)
def test_norms_stand_where_the_model_has_them(order, beside, behind, last):
    encoder, _ = columns(translator(norm_order=order))
    first = encoder.runs[0].branches[0]
    assert [box.kind for box in first.beside] == beside
    assert [box.kind for box in first.behind] == behind
    assert [box.kind for box in encoder.behind] == last


@pytest.mark.parametrize(
    ("position", "options", "before", "inside"),
    [
        ("sinusoidal", {}, ("on embeddings",), None),
        ("learned", {"max_length": 512}, ("on embeddings", "8,192 parameters"), None),
        ("randomized", {}, ("on positions and embeddings",), None),
        ("alibi", {}, None, "alibi on scores by the places of query and key"),
        ("fire", {}, None, "fire on scores by the places of query and key"),
        ("none", {}, None, None),
    ],
)
def test_positions_stand_where_they_act(position, options, before, inside):
    (column,) = columns(language_model(attention("multi_head"), position, **options))
    assert [box.facts for box in column.before[1:]] == ([] if before is None else [before])
    (box,) = boxes(column, "attention")
    assert box.facts == ("multi_head, 4 heads", *([] if inside is None else [inside]))


def test_tables_that_are_not_shared_have_parameters_of_their_own():
    shown = texts(translator(tie_embeddings=False))
    assert shown.count("19,200 parameters") == 3
    assert "the source's table" not in shown and "the embedding's table" not in shown


def test_a_language_model_has_no_memory():
    model = language_model(attention("grouped_query", kv_heads=1), layers=1)
    shown = texts(model)
    assert {"LanguageModel, " + count(model) + " parameters", "× 1"} <= set(shown)
    assert "memory" not in shown and "cross-attention" not in shown
    (box,) = boxes(columns(model)[0], "attention")
    assert box.facts[0] == "grouped_query, 4 heads, 1 of keys and values"


def test_layers_that_differ_stand_apart():
    (column,) = columns(language_model(alternating, layers=5))
    assert [(run.first, run.last) for run in column.runs] == [(1, 2), (3, 3), (4, 5)]
    facts = [box.facts[:2] for box in boxes(column, "attention")]
    assert facts[0] == facts[2] == ("sliding_window, 4 heads", "window of 8 tokens")
    assert facts[1] == ("multi_head, 4 heads", "rotary on queries and keys")
    shown = texts(language_model(alternating, layers=5))
    assert [text for text in shown if text.startswith("layer")] == [
        "layers 1–2",
        "layer 3",
        "layers 4–5",
    ]


def test_a_layer_that_an_encoding_passes_over_says_nothing_of_it():
    model = language_model(attention("multi_head"), "rotary_every", every=3, layers=3)
    (column,) = columns(model)
    assert [(run.first, run.last) for run in column.runs] == [(1, 2), (3, 3)]
    turned, plain = boxes(column, "attention")
    assert turned.facts[1:] == ("rotary_every on queries and keys",)
    assert plain.facts[1:] == ()


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="a Seq2Seq or a LanguageModel, got a Linear"):
        architecture(nn.Linear(2, 2))


def test_drawing_leaves_the_model_as_it_was():
    model = translator("sinusoidal")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    architecture(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
