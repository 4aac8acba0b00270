"""Stacks of mixed layers: patterns, what composes from them, and what is refused."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.configuration.build import build_model
from attention_zoo.tasks.configuration.conf_files import list_choices
from attention_zoo.tasks.configuration.defaults import resolve_defaults
from attention_zoo.tasks.configuration.stacks import (
    expand_pattern,
    kv_sources_by_role,
    layers_by_role,
)
from attention_zoo.tasks.configuration.validation import validate
from attention_zoo.tasks.training.loggers.wandb_runs import wandb_options
from tests.conf.test_conf import composed
from tests.conformance.cases import mark_exhaustive
from tests.conformance.numbers import default_dtype

LAYOUTS = [x for x in list_choices("stack") if x != "uniform"]
TASKS = [["task=language_modeling", "data=python_docs"], ["task=translation"]]
LANGUAGE = TASKS[0]


@pytest.mark.parametrize(
    "pattern, layers, expected",
    [
        ("a", 3, "a a a"),
        ("aaab", 6, "a a a b a a"),
        ("aaab", 4, "a a a b"),
        ("a*5 b", 8, "a a a a a b a a"),
        ("a*5b", 6, "a a a a a b"),
        ("a* b", 4, "a a a b"),
        ("a* b B*", 8, "a a a a b B B B"),
        ("a* b B*", 5, "a a b B B"),
        ("(aab)* (AAB)*", 6, "a a b A A B"),
        ("(ab)*2 c", 5, "a b a b c"),
        ("a+b", 2, "a+b a+b"),
        ("a+b c", 4, "a+b c a+b c"),
        (["a", "a+b"], 3, "a a+b a"),
    ],
)
def test_a_pattern_gives_each_layer_its_kind(pattern, layers, expected):
    assert expand_pattern(pattern, layers) == expected.split()


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "3a",
        "a**2",
        "a*0",
        "*a",
        "(a",
        "a)",
        "((a))",
        "a-b",
        "a+",
        ["a", "?"],
        [],
        1,
        0.5,
        True,
        {"a": 1},
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused(pattern):
    with pytest.raises(UserError, match=r"stack.pattern must be letters of kinds, as in aaab"):
        expand_pattern(pattern, 4)


@pytest.mark.parametrize("pattern, needed", [("aaab", 4), ("a* b B*", 3), ("a*7 b", 8)])
def test_a_pattern_longer_than_the_model_is_refused(pattern, needed):
    with pytest.raises(UserError, match=rf"the model 2; give model.layers={needed},"):
        expand_pattern(pattern, 2)


@pytest.mark.parametrize(
    "task",
    mark_exhaustive((task, "task") for task in TASKS),
    ids=["language_modeling", "translation"],
)
@pytest.mark.parametrize("name", mark_exhaustive((name, "layout") for name in LAYOUTS))
def test_every_layout_builds_a_model(name, task):
    config = composed(*task, f"stack={name}", "model=tiny")
    validate(config)
    model = build_model(config, vocabulary_size=11, pad_id=0)
    for role, layers in layers_by_role(config).items():
        stack = model.encoder if role == "encoder_attention" else model.decoder
        built = [layer.self_attention for layer in stack.layers]
        if role == "cross_attention":
            built = [layer.cross_attention for layer in stack.layers]
        names = [[part.card.name for part in sublayer.branches] for sublayer in built]
        assert names == [[branch.attention["name"] for branch in layer] for layer in layers]


def test_uniform_is_the_model_of_before():
    config = composed(*LANGUAGE, "model=tiny")
    assert config["stack"] == dict.fromkeys(config["stack"])
    assert {*map(len, layers_by_role(config)["attention"])} == {1}


def test_the_saved_config_lists_the_layers():
    config = composed(*LANGUAGE, "stack=hybrid", "model.layers=5", "model=tiny")
    assert config["stack"]["pattern"] == "aaab"
    assert config["stack"]["decoder_pattern"] == [*"aaaba"]
    again = OmegaConf.create(config)
    resolve_defaults(again)
    assert OmegaConf.to_container(again) == config


def test_what_no_layer_has_is_null():
    config = composed(*LANGUAGE, "stack=hybrid", "stack.pattern=a", "model=tiny")
    assert config["attention"] is None
    assert config["stack"]["b"] is None
    assert config["position"]["name"] == "rotary"


def test_a_layout_brings_its_number_of_layers():
    assert composed(*LANGUAGE, "stack=gemma3", "model=tiny")["model"]["layers"] == 6
    assert composed(*LANGUAGE, "stack=gemma3", "model=base")["model"]["layers"] == 6
    assert composed(*LANGUAGE, "stack=gemma3n", "model=tiny")["model"]["layers"] == 10
    given = composed(*LANGUAGE, "stack=gemma3", "model.layers=12")
    assert given["model"]["layers"] == 12
    with pytest.raises(UserError, match=r"give model\.layers=6"):
        composed(*LANGUAGE, "stack=gemma3", "model.layers=2")


@pytest.mark.parametrize(
    "overrides, positions",
    [
        ([], ["rotary", "rotary"]),
        (["attention@stack.a=gated_delta"], ["none", "rotary"]),
        (["attention@stack.a=delta", "attention@stack.b=gated_delta"], ["sinusoidal"] * 2),
        (["position=alibi"], ["alibi", "alibi"]),
        (["position=alibi", "position@stack.b.position=none"], ["alibi", "none"]),
    ],
)
def test_kinds_without_an_encoding_get_one(overrides, positions):
    config = composed(*LANGUAGE, "stack=hybrid", "stack.pattern=ab", "model=tiny", *overrides)
    validate(config)
    layers = layers_by_role(config)["attention"]
    assert [layer[0].position["name"] for layer in layers] == positions


REFUSED = {
    "attention that no layer has": (["attention=linear"], UserError, "would have no effect"),
    "encoding that no layer has": (
        ["position=alibi", "position@stack.a.position=none", "position@stack.b.position=none"],
        UserError,
        "position=alibi would have no effect",
    ),
    "kind that is not chosen": (
        ["stack.pattern=ac"],
        UserError,
        r"the kind c, .* attention@stack\.c=NAME. Kinds: a, b",
    ),
    "no pattern": (["stack.pattern=null"], UserError, "stack needs a pattern"),
    "an encoding that a kind cannot take": (
        ["attention@stack.a=gated_delta", "position=alibi"],
        Unsupported,
        r"attention, layer 0, stack\.a=gated_delta: gated_delta cannot take position=alibi",
    ),
    "a kind before the layers": (
        ["position@stack.a.position=sinusoidal", "position@stack.b.position=none"],
        Unsupported,
        "acts on embeddings, before all layers",
    ),
    "an option of an attention that no layer has": (
        ["attention.window=4"],
        UserError,
        r"attention\.window=4 would have no effect, .* stack\.a\.window=4",
    ),
    "pattern of a role that the task lacks": (
        ["stack.cross_pattern=ab"],
        UserError,
        r"stack\.cross_pattern=ab would have no effect",
    ),
    "pattern that another one replaces": (
        ["stack.pattern=a", "stack.decoder_pattern=b"],
        UserError,
        r"stack\.pattern=a would have no effect",
    ),
    "kind that no pattern has": (
        ["attention@stack.c=linear"],
        UserError,
        r"no layer has the kind c; .* stack\.pattern=ac",
    ),
    "kind that is an option": (["stack.a=linear"], UserError, r"give attention@stack\.a=linear"),
    "encoding of a kind that is an option": (
        ["+stack.a.position=alibi"],
        UserError,
        r"give position@stack\.a\.position=alibi",
    ),
    "sharing that is said twice": (
        ["stack.pattern=aA", "+model.share_kv=[null,0,null,2]"],
        UserError,
        "give one of them",
    ),
    "shared keys side by side": (["stack.pattern=a+bA+B"], UserError, "side by side"),
    "shared keys of no layer": (["stack.pattern=Ab"], UserError, "earlier layer a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    overrides, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        validate(composed(*LANGUAGE, "stack=hybrid", "model=tiny", "model.layers=4", *overrides))


def test_a_pattern_without_kinds_is_refused():
    with pytest.raises(UserError, match="choose stack=hybrid, or a layout"):
        validate(composed(*LANGUAGE, "stack.pattern=aab"))


def test_roles_have_patterns_of_their_own():
    config = composed(
        "stack=hybrid",
        "model=tiny",
        "attention@stack.a=gated_delta",
        "stack.encoder_pattern=b",
        "stack.cross_pattern=b",
    )
    validate(config)
    names = {
        role: [layer[0].attention["name"] for layer in layers]
        for role, layers in layers_by_role(config).items()
    }
    assert names == {
        "encoder_attention": ["multi_head"] * 4,
        "decoder_attention": [*["gated_delta"] * 3, "multi_head"],
        "cross_attention": ["multi_head"] * 4,
    }


def test_a_causal_kind_of_an_encoder_is_refused_with_its_layer():
    config = composed("stack=hybrid", "attention@stack.a=gated_delta", "model=tiny")
    match = r"encoder_attention, layer 0, stack\.a=gated_delta: .* stack\.encoder_pattern"
    with pytest.raises(Unsupported, match=match):
        validate(config)


def test_a_refusal_names_the_options_of_the_role():
    with pytest.raises(UserError, match=r"stack\.encoder_pattern must be letters"):
        composed("stack=hybrid", "stack.encoder_pattern=3a")
    with pytest.raises(UserError, match=r"stack\.encoder_pattern=aab .*model\.encoder_layers=3"):
        composed("stack=hybrid", "stack.encoder_pattern=aab", "model.encoder_layers=2")


def test_a_written_pattern_may_leave_a_kind_out():
    """So that patterns are swept over the same kinds."""
    config = composed(
        *LANGUAGE, "stack=hybrid", "attention@stack.a=gated_delta", "stack.pattern=b", "model=tiny"
    )
    assert config["stack"]["a"] is None


def test_layers_that_an_option_shares_are_those_of_the_model():
    config = composed(*LANGUAGE, "model=tiny", "model.layers=3", "+model.share_kv=[null,0,0]")
    assert kv_sources_by_role(config) == {"attention": [None, 0, 0]}


def test_a_role_is_chosen_once():
    with pytest.raises(UserError, match="give one of them"):
        composed("stack=hybrid", "attention@encoder_attention=linear", "stack.encoder_pattern=a")


def test_names_of_runs_join_the_kinds():
    config = composed(*LANGUAGE, "stack=hybrid", "attention@stack.a=gated_delta", "model=tiny")
    config["choices"] = {"data": "python_docs"}
    options = wandb_options(config, {}, "train")
    assert options["name"] == "language_modeling-gated_delta+multi_head-none+rotary-1"


@pytest.mark.parametrize("task", TASKS, ids=["language_modeling", "translation"])
@pytest.mark.parametrize("name", mark_exhaustive((name, "layout") for name in LAYOUTS))
def test_cached_decoding_of_a_layout_equals_one_pass(name, task):
    """Also beyond its windows, and in pieces of any length."""
    config = composed(*task, f"stack={name}", "model=tiny", "model.dim=32", "model.ffn_dim=32")
    for kind in config["stack"].values():
        if isinstance(kind, dict) and kind.get("window"):
            kind["window"] = 3
    with default_dtype("float64"):
        model = build_model(config, vocabulary_size=11, pad_id=0).eval()
    tokens = torch.randint(1, 11, (2, 13))
    step = model
    if task != LANGUAGE:
        source = torch.randint(1, 11, (2, 7))
        memory = model.encode(source, source != 0)
        step = partial(model.decode, memory=memory, source_mask=source != 0)
    cache = model.new_cache()
    pieces = [step(part, cache=cache) for part in tokens.split([5, 1, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), step(tokens))
