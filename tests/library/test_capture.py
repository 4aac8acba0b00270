"""Watching a module tells what its attention looks at, and changes nothing."""

import doctest

import pytest
import torch
from torch import nn

import attention_zoo.capture
from attention_zoo import Mask, Unsupported, UserError, create_attention
from attention_zoo.capture import capture_attention, group_by_role
from tests.conformance.cases import mark_exhaustive
from tests.conformance.numbers import assert_same

DIM = 8


def attention(role="causal", name="multi_head", **options):
    return create_attention(name, dim=DIM, heads=2, role=role, **options)


class Model(nn.Module):
    """Attention of every role, one of it twice, with all that a call can be given."""

    def __init__(self, **options):
        super().__init__()
        self.first = attention("global", **options)
        self.blocks = nn.ModuleDict({"own": attention(position="rotary", **options)})
        self.other = attention("cross", **options)

    def forward(self, x, context):
        self.content_bias = self.first(context, mask=PADDED)
        self.told = self.blocks["own"](x, positions=PLACES)
        self.again = self.blocks["own"](self.told, mask=Mask(window=2))
        return self.other(self.again, self.content_bias, mask=PADDED)


PADDED = Mask(key_mask=torch.tensor([[True] * 3 + [False]] * 2))
PLACES = torch.tensor([[4, 5, 6, 7, 8]])


def inputs():
    return torch.randn(2, 5, DIM), torch.randn(2, 4, DIM)


def hooks(module):
    return [hook for part in module.modules() for hook in part._forward_pre_hooks]


def test_weights_are_those_of_each_call_in_its_order():
    model, (x, context) = Model(), inputs()
    with capture_attention(model) as captured:
        model(x, context)
    own = model.blocks["own"]
    expected = [
        ("first", "global", model.first.attention_map(context, mask=PADDED)),
        ("blocks.own", "causal", own.attention_map(x, positions=PLACES)),
        ("blocks.own", "causal", own.attention_map(model.told, mask=Mask(window=2))),
        ("other", "cross", model.other.attention_map(model.again, model.content_bias, mask=PADDED)),
    ]
    assert [one[:2] for one in captured] == [one[:2] for one in expected]
    for (_, _, weights), (_, _, theirs) in zip(captured, expected, strict=True):
        assert torch.equal(weights, theirs)
    maps = group_by_role(captured)
    assert {part: len(layers) for part, layers in maps.items()} == {
        "encoder": 1,
        "decoder": 2,
        "cross": 1,
    }
    assert maps["decoder"][1] is captured[2].weights


def test_attention_itself_can_be_watched():
    lone, x = attention(), torch.randn(1, 5, DIM)
    with capture_attention(lone) as captured:
        lone(x)
        lone(x)
    assert [name for name, _, _ in captured] == ["", ""]
    assert list(group_by_role(captured)) == ["decoder"]


@pytest.mark.parametrize("training", [True, False])
def test_a_watched_module_gives_what_it_gives_unwatched(training):
    """Outputs, gradients and what is drawn at random, to the bit; the weights are undropped."""
    model, batch = Model(dropout=0.5).train(training), inputs()
    results = []
    for watch in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        if watch:
            with capture_attention(model) as captured:
                out = model(*batch)
        else:
            out = model(*batch)
        out.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        results.append([out, *gradients, torch.rand(1)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert_same(captured[-1].weights.sum(-1), torch.ones(2, 2, 5))


def test_gradients_pass_through_the_weights():
    model, batch = Model(), inputs()
    with capture_attention(model) as captured:
        model(*batch)
    captured[-1].weights.square().sum().backward()
    assert model.first.value.weight.grad.ne(0).any()
    with torch.no_grad(), capture_attention(model) as captured:
        model(*batch)
    assert not captured[-1].weights.requires_grad


def test_nothing_is_left_behind_even_by_a_pass_that_fails():
    model = Model()
    with capture_attention(model) as captured:
        assert len(hooks(model)) == 3
    assert not hooks(model) and not captured
    with pytest.raises(UserError), capture_attention(model):
        model(None, None)
    assert not hooks(model)


@torch.no_grad()
@pytest.mark.parametrize(
    "way", mark_exhaustive((way, "compiled") for way in ("wrapped", "in place", "inside"))
)
def test_compiled_modules_are_watched_and_stay_compiled(way):
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model, batch = Model(), inputs()
    called = model
    if way == "wrapped":
        called = torch.compile(model, backend=backend)
    else:
        (model if way == "in place" else model.other).compile(backend=backend)
    expected = called(*batch)
    compiled = len(graphs)
    assert compiled
    with capture_attention(called) as captured:
        assert_same(called(*batch), expected)
    assert len(captured) == 4
    called(*batch)
    assert len(captured) == 4 and len(graphs) == compiled


def test_a_module_of_several_processes_is_watched(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Model())
        with capture_attention(wrapped) as captured:
            wrapped(*inputs())
    finally:
        torch.distributed.destroy_process_group()
    assert captured[0].name == "module.first"


def test_the_flex_backend_is_watched():
    model, batch = Model(backend="flex"), inputs()
    torch.compile(nn.Identity(), backend="eager")(torch.ones(1))  # as where all is compiled
    with torch.no_grad(), capture_attention(model) as captured:
        out = model(*batch)
    assert len(captured) == 4
    with torch.no_grad():
        assert_same(out, model(*batch))


def test_decoding_with_a_cache_is_refused():
    model = attention()
    with pytest.raises(Unsupported, match="cache cannot be captured"), capture_attention(model):
        model(torch.randn(1, 5, DIM), cache=model.new_cache())


def test_a_module_without_attention_is_refused():
    with (
        pytest.raises(UserError, match="Linear contains no attention of the zoo"),
        capture_attention(nn.Linear(2, 2)),
    ):
        pass


def test_the_example_is_true():
    assert doctest.testmod(attention_zoo.capture) == (0, 4)
