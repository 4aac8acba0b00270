"""torch.compile makes one graph for one length, and one more for all others; torch.export, one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from attention_zoo import create_attention, create_position
from attention_zoo.masks import Mask
from attention_zoo.models import LanguageModel, Seq2Seq
from tests.conformance.cases import Case, mark_exhaustive, pairs, plain_cases
from tests.conformance.numbers import assert_same

# Of one number of chunks and blocks, over which Python loops: another number is another graph. Some
# entries take two steps for each token.
LENGTHS = [49, 50, 52, 54, 57, 59, 61, 63]


def cases() -> list[Any]:
    """Every entry, and every encoding with `multi_head`, but for those that act by the length.

    With these, each query is attended to apart, and every length has its own graph.
    """
    fast = [case for case in pairs() if case.name == "multi_head" and "length" not in case.acts]
    fast += [case for case in plain_cases() if case.name == "multi_head"]
    slow = [case for case in plain_cases() if case.name != "multi_head"]
    return [
        *mark_exhaustive((case, bool(case.acts)) for case in fast),
        *(pytest.param(case, marks=[pytest.mark.slow, pytest.mark.exhaustive]) for case in slow),
    ]


def count_graphs(module: nn.Module, calls: Iterator[tuple[list[Any], dict[str, Any]]]) -> int:
    """Compile a module, compare it with itself in every call, and count its graphs."""
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    with torch.no_grad():
        for inputs, options in calls:
            assert_same(compiled(*inputs, **options), module(*inputs, **options))
    return len(graphs)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_lengths_share_a_graph(case: Case) -> None:
    def calls() -> Iterator[tuple[list[Any], dict[str, Any]]]:
        for length in LENGTHS:
            real = torch.arange(length) != torch.tensor([[length], [length - 3]])
            mask = Mask(key_mask=real) if case.honours("key_mask") else Mask()
            yield case.inputs(length), {"mask": mask}

    assert count_graphs(case.attention().eval(), calls()) <= 2


OPTIONS = {
    "plain": ("multi_head", "sinusoidal", {}),
    "llama": ("grouped_query", "rotary", {"norm": "rms", "activation": "swiglu"}),
    "window": ("sliding_window", "alibi", {}),
    "linear": ("linear", "none", {}),
}


def build(kind: type[nn.Module], name: str) -> nn.Module:
    attention, position, options = OPTIONS[name]
    sizes = {"kv_heads": 2} if attention == "grouped_query" else {}
    sizes |= {"window": 4} if attention == "sliding_window" else {}
    factory = partial(create_attention, attention, heads=4, **sizes)
    roles = {"attention": factory}
    if kind is Seq2Seq:
        cross = partial(create_attention, "multi_head", heads=4)
        roles = {"encoder_attention": factory, "decoder_attention": factory}
        roles |= {"cross_attention": cross, "pad_id": 0}
    return kind(
        vocabulary_size=11,
        dim=16,
        ffn_dim=16,
        layers=2,
        position=partial(create_position, position),
        **roles,
        **options,
    ).eval()


def tokens(kind: type[nn.Module], length: int) -> list[Any]:
    draw = partial(torch.randint, 1, 11)
    return [draw((2, length))] if kind is LanguageModel else [draw((2, length)), draw((2, length))]


@pytest.mark.slow
@pytest.mark.parametrize("name", mark_exhaustive((name, "model") for name in OPTIONS))
@pytest.mark.parametrize("kind", [LanguageModel, Seq2Seq])
def test_lengths_of_a_model_share_a_graph(kind: type[nn.Module], name: str) -> None:
    calls = ((tokens(kind, length), {}) for length in LENGTHS)
    assert count_graphs(build(kind, name), calls) <= 2


@pytest.mark.parametrize("name", mark_exhaustive((x, "model") for x in OPTIONS if x != "window"))
@pytest.mark.parametrize("kind", [LanguageModel, Seq2Seq])
def test_a_model_is_exported_for_any_length(kind: type[nn.Module], name: str) -> None:
    model = build(kind, name)
    names = ["tokens"] if kind is LanguageModel else ["source", "target"]
    # The chunks of kernel attention are counted, so it has one graph up to 32 tokens.
    longest = 32 if name == "linear" else 64
    shapes = {x: {1: torch.export.Dim(f"{x}_length", min=2, max=longest)} for x in names}
    exported = torch.export.export(model, tuple(tokens(kind, 17)), dynamic_shapes=shapes).module()
    for length in (5, 20, longest - 1):
        inputs = tokens(kind, length)
        assert_same(exported(*inputs), model(*inputs))
