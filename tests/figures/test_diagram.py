"""Test that the diagram of a model shows its modules and sizes."""

from functools import partial

import pytest
import torch
from torch import nn

from attention_zoo import create_attention, create_position
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.tasks.views.figures.diagram import draw_architecture, summarize_model
from tests.figures.legibility import assert_legible, visible_texts

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
    """Let every third layer attend to all tokens, as in models of long text."""
    if layer % 3 == 2:
        return create_attention("multi_head", heads=4, layer=layer, **options)
    return create_attention("sliding_window", heads=4, window=8, layer=layer, **options)


def texts(model):
    """Return the texts of the diagram, from bottom to top, the left stack first."""
    figure = draw_architecture(model)
    assert_legible(figure)
    return [text.get_text() for text in visible_texts(figure)]


def count(module):
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def modules(stack, kind):
    """Return the modules of a kind in the layers of a stack."""
    return [
        module
        for group in stack.layer_groups
        for sublayer in group.sublayers
        for module in (*sublayer.inside_residual, *sublayer.after_residual)
        if module.kind == kind
    ]


def test_a_translator_is_drawn_with_its_sizes():
    model = translator(activation="swiglu", norm="rms", encoder_layers=3)
    drawn_texts = texts(model)
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
        assert drawn_texts.count(fact) == times, fact


def test_each_role_has_its_own_mechanism():
    encoder, decoder = summarize_model(translator("sinusoidal", causal="linear", cross="additive"))
    assert [(module.title, module.facts) for module in modules(encoder, "attention")] == [
        ("global self-attention", ("multi_head, 4 heads",))
    ]
    assert [(module.title, module.facts) for module in modules(decoder, "attention")] == [
        ("causal self-attention", ("linear, 4 heads",)),
        ("cross-attention", ("additive, 4 heads",)),
    ]
    assert [sublayer.reads_memory for sublayer in decoder.layer_groups[0].sublayers] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("order", "inside", "after", "last"),
    [
        ("pre", ["norm", "attention"], [], ["norm"]),
        ("post", ["attention"], ["norm"], []),
        ("sandwich", ["norm", "attention", "norm"], [], ["norm"]),
        ("res_post", ["attention", "norm"], [], ["norm"]),
    ],
)
def test_norms_stand_where_the_model_has_them(order, inside, after, last):
    encoder, _ = summarize_model(translator(norm_order=order))
    first = encoder.layer_groups[0].sublayers[0]
    assert [module.kind for module in first.inside_residual] == inside
    assert [module.kind for module in first.after_residual] == after
    assert [module.kind for module in encoder.modules_after] == last


def test_parallel_attention_and_feed_forward_are_one_box():
    options = {"attention": attention("multi_head"), "position": partial(create_position, "none")}
    model = LanguageModel(**SIZES, **options, parallel_feed_forward=True)
    (sublayer,) = summarize_model(model)[0].layer_groups[0].sublayers
    assert [module.kind for module in sublayer.inside_residual] == ["norm", "attention"]
    assert sublayer.inside_residual[1].title == "causal self-attention + feed-forward"
    assert sublayer.inside_residual[1].facts[-1] == "gelu"


def test_what_extends_projections_is_a_fact_of_the_layers_that_have_it():
    options = {"attention": attention("multi_head"), "position": partial(create_position, "none")}
    options |= {"qkv_convolution": 3, "value_residual": True}
    groups = summarize_model(LanguageModel(**SIZES | options | {"layers": 3}))[0].layer_groups
    facts = [group.sublayers[0].inside_residual[1].facts[1:] for group in groups]
    convolved, mixed = "projections convolved over 3 tokens", "mixes values of layer 0"
    assert facts == [(convolved,), (convolved, mixed)]


def test_a_layer_that_reads_keys_and_values_names_the_layer():
    options = {"attention": attention("multi_head"), "position": partial(create_position, "none")}
    model = LanguageModel(**SIZES | options | {"layers": 4}, share_kv=[None, None, 1, 0])
    groups = summarize_model(model)[0].layer_groups
    facts = [group.sublayers[0].inside_residual[1].facts[1:] for group in groups]
    assert facts == [(), *((f"reads keys and values of layer {x}",) for x in (1, 0))]


@pytest.mark.parametrize(
    ("position", "options", "before", "inside"),
    [
        ("sinusoidal", {}, ("on embeddings",), None),
        ("learned", {"max_length": 512}, ("on embeddings", "8,192 parameters"), None),
        ("randomized", {}, ("on positions and embeddings",), None),
        ("alibi", {}, None, "alibi on scores by the positions of query and key"),
        ("fire", {}, None, "fire on scores by the positions of query and key"),
        ("none", {}, None, None),
    ],
)
def test_positions_stand_where_they_act(position, options, before, inside):
    (stack,) = summarize_model(language_model(attention("multi_head"), position, **options))
    assert [module.facts for module in stack.modules_before[1:]] == (
        [] if before is None else [before]
    )
    (module,) = modules(stack, "attention")
    assert module.facts == ("multi_head, 4 heads", *([] if inside is None else [inside]))


def test_tables_that_are_not_shared_have_parameters_of_their_own():
    drawn_texts = texts(translator(tie_embeddings=False))
    assert drawn_texts.count("19,200 parameters") == 3
    assert "the source's table" not in drawn_texts and "the embedding's table" not in drawn_texts


def test_a_language_model_has_no_memory():
    model = language_model(attention("grouped_query", kv_heads=1), layers=1)
    drawn_texts = texts(model)
    assert {"LanguageModel, " + count(model) + " parameters", "× 1"} <= set(drawn_texts)
    assert "memory" not in drawn_texts and "cross-attention" not in drawn_texts
    (module,) = modules(summarize_model(model)[0], "attention")
    assert module.facts[0] == "grouped_query, 4 heads, 1 of keys and values"


def test_layers_that_differ_stand_apart():
    (stack,) = summarize_model(language_model(alternating, layers=5))
    assert [(group.first, group.last) for group in stack.layer_groups] == [(0, 1), (2, 2), (3, 4)]
    facts = [module.facts[:2] for module in modules(stack, "attention")]
    assert facts[0] == facts[2] == ("sliding_window, 4 heads", "window of 8 tokens")
    assert facts[1] == ("multi_head, 4 heads", "rotary on queries and keys")
    drawn_texts = texts(language_model(alternating, layers=5))
    assert [text for text in drawn_texts if text.startswith("layer")] == [
        "layers 0–1",
        "layer 2",
        "layers 3–4",
    ]


def test_a_layer_that_an_encoding_skips_does_not_name_it():
    model = language_model(attention("multi_head"), "rotary_every", every=3, layers=3)
    (stack,) = summarize_model(model)
    assert [(group.first, group.last) for group in stack.layer_groups] == [(0, 1), (2, 2)]
    encoded, skipped = modules(stack, "attention")
    assert encoded.facts[1:] == ("rotary_every on queries and keys",)
    assert skipped.facts[1:] == ()


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="a Seq2Seq or a LanguageModel, got a Linear"):
        draw_architecture(nn.Linear(2, 2))


def test_drawing_leaves_the_model_as_it_was():
    model = translator("sinusoidal")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw_architecture(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
