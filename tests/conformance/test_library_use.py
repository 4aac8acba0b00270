"""Entries serve other people's code: empty batches, the meta device, other types, torch.func."""

from operator import attrgetter

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from attention_zoo import UserError, create_position
from attention_zoo.attention.inputs import resolve_positions
from attention_zoo.masks import Mask
from attention_zoo.models import LanguageModel
from attention_zoo.zoo import POSITION
from tests.conformance.cases import (
    DIM,
    Case,
    over,
    pairs,
    plain_cases,
    positioned_cases,
    small_options,
)
from tests.conformance.definition import key_mask, packed, visible
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients
from tests.conformance.test_models import VOCABULARY, language_model, tokens

LENGTH = 9
EMPTY = [(2, 0, 0), (0, 5, 5), (0, 0, 0), (2, 0, 4), (2, 4, 0)]  # rows, queries, keys


def masks(case: Case, batch: int, keys: int) -> list[Mask]:
    """No mask, and those that the entry honours for rows of so many keys."""
    result = [Mask()]
    if case.honours("key_mask"):
        result.append(Mask(key_mask=torch.ones(batch, keys, dtype=torch.bool)))
    if case.packs and case.role != "cross":
        result.append(Mask(segment_ids=torch.zeros(batch, keys, dtype=torch.long)))
    return result


@over(positioned_cases(), kind=attrgetter("family_kind"))
def test_what_is_empty_has_an_empty_result(case: Case) -> None:
    """With gradients that are finite; and a query without keys sees nothing."""
    attention = case.attention()
    for batch, queries, keys in EMPTY:
        if case.role != "cross" and queries != keys:
            continue
        inputs = case.inputs(queries, keys, batch=batch)
        for mask in masks(case, batch, keys):
            out, *gradients = values_and_gradients(
                lambda *args, mask=mask: attention(*args, mask=mask), attention, *inputs
            )
            assert out.shape == (batch, queries, DIM)
            assert all(part.isfinite().all() for part in (out, *gradients))
            weights = attention.attention_map(*inputs, mask=mask)
            values = attention.values(*inputs, mask=mask)
            assert (len(weights), *weights.shape[2:]) == (batch, queries, keys)
            assert (len(values), values.shape[2]) == (batch, keys)


@over(case for case in plain_cases() if case.decodes)
def test_an_empty_chunk_leaves_the_cache_as_it_was(case: Case) -> None:
    attention = case.attention().eval()
    x, *context = case.inputs(5)
    cache = attention.new_cache()
    first = attention(x[:, :3], *context, cache=cache)
    length = cache.length
    assert attention(x[:, :0], *context, cache=cache).shape == (2, 0, DIM)
    assert cache.length == length
    last = attention(x[:, 3:], *context, cache=cache)
    assert_same(torch.cat([first, last], dim=1), attention(x, *context))


@pytest.mark.parametrize("position", list(POSITION))
def test_a_model_takes_no_tokens(position: str) -> None:
    model = language_model("multi_head", position, layers=1)
    for shape in ((2, 0), (0, 3), (0, 0)):
        rows = torch.zeros(shape, dtype=torch.long)
        for options in ({}, {"key_mask": rows.bool()}, {"segment_ids": rows}):
            assert model(rows, **options).shape == (*shape, VOCABULARY)


def emptied(module: nn.Module) -> None:
    """Give a module of the meta device memory with nothing of use in it."""
    module.to_empty(device="cpu")
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.fill_(torch.nan if tensor.is_floating_point() else 99)


@over(positioned_cases(), kind=attrgetter("family_kind"))
def test_what_is_built_on_the_meta_device_is_all_in_the_state_dict(case: Case) -> None:
    ours, inputs = case.attention(), case.inputs(LENGTH)
    with torch.device("meta"):
        theirs = case.attention()
        assert theirs(*(torch.empty(x.shape) for x in inputs)).is_meta
    emptied(theirs)
    theirs.load_state_dict(ours.state_dict())
    assert_same(theirs(*inputs), ours(*inputs))


@pytest.mark.parametrize("position", list(POSITION))
def test_a_model_runs_on_the_meta_device_and_is_loaded_from_it(position: str) -> None:
    ours: LanguageModel = language_model("multi_head", position, layers=1).eval()
    with torch.device("meta"):
        theirs: LanguageModel = language_model("multi_head", position, layers=1)
        rows = torch.empty(2, LENGTH, dtype=torch.long)
        assert theirs(rows).is_meta
        assert theirs(rows, key_mask=torch.empty(2, LENGTH, dtype=torch.bool)).is_meta
    emptied(theirs)
    theirs.load_state_dict(ours.state_dict())
    rows = tokens(2, LENGTH)
    assert_same(theirs.eval()(rows), ours(rows))


@over(positioned_cases(), kind=attrgetter("family_kind"))
def test_a_module_converted_to_float64_computes_in_it(case: Case) -> None:
    """Where float32 is the default, to the digits of float64."""
    with default_dtype("float32"):
        attention = case.attention().double()
        inputs = [x.double() for x in case.inputs(LENGTH)]
        ours = [attention(*inputs), attention.attention_map(*inputs)]
        x, source = inputs[0], inputs[-1]
        seen = visible(attention, Mask(), 2, LENGTH, LENGTH)
        naive = attention.naive(x, source, seen, resolve_positions(x))
    assert_same([attention(*inputs), attention.attention_map(*inputs)], ours)
    assert_same(naive, ours[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of what vmap has no rule for
@over(positioned_cases(), kind=attrgetter("family_kind"))
def test_transforms_of_torch_func_apply(case: Case) -> None:
    """Gradients as those of autograd, each row alone by vmap, and gradients of each row."""
    attention = case.attention()
    inputs = case.inputs(LENGTH)
    mask = Mask(key_mask=key_mask("left", 2, LENGTH)) if case.honours("key_mask") else Mask()
    parameters = dict(attention.named_parameters())

    def loss(parameters: dict[str, Tensor], mask: Mask, *inputs: Tensor) -> Tensor:
        return functional_call(attention, parameters, inputs, {"mask": mask}).square().sum()

    ours = grad(loss, argnums=(0, 2))(parameters, mask, *inputs)
    theirs = torch.autograd.grad(
        loss(parameters, mask, *(x.requires_grad_() for x in inputs)),
        [*parameters.values(), inputs[0]],
        allow_unused=True,
        materialize_grads=True,
    )
    assert_same([*ours[0].values(), ours[1]], theirs)

    def alone(real: Tensor, *inputs: Tensor) -> Tensor:
        return attention(*inputs, mask=Mask(key_mask=real) if mask.key_mask is not None else mask)

    real = key_mask("left", 2, LENGTH)[:, None]
    rows = [x.detach()[:, None] for x in inputs]
    assert_same(vmap(alone)(real, *rows)[:, 0], attention(*inputs, mask=mask))
    vmap(grad(lambda *args: alone(*args).square().sum(), argnums=1))(real, *rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@over(case for case in positioned_cases() if case.name == "multi_head")
def test_padding_is_irrelevant_in_narrow_types(case: Case, dtype: torch.dtype) -> None:
    """Beside every encoding, also where its scores would be far above those of real tokens."""
    attention = case.attention().eval().to(dtype)
    inputs = [x.to(dtype) for x in case.inputs(LENGTH)]
    for side in ("left", "interior", "right"):
        real = key_mask(side, 2, LENGTH)
        outputs = []
        for scale in (1.0, 60.0):
            *others, source = inputs
            source = torch.where(real[..., None], source, scale * torch.randn_like(source))
            out = attention(*others, source, mask=Mask(key_mask=real))
            outputs.append(out if case.role == "cross" else out[real])
        assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("position", ["alibi", "t5_bias"])
def test_padding_beside_a_bias_is_hidden_however_large_it_is(
    position: str, dtype: torch.dtype
) -> None:
    attention = Case("multi_head", "global", position).attention().eval().to(dtype)
    with torch.no_grad():
        attention.value.weight.zero_()
        attention.value.weight[:, 0] = 1.0
    real = key_mask("right", 2, LENGTH)
    x = torch.randn(2, LENGTH, DIM).to(dtype)
    large = torch.finfo(dtype).max ** 0.5 / 4
    with torch.no_grad():
        attention.query.weight.copy_(large / 64 * torch.ones_like(attention.query.weight))
        attention.key.weight.copy_(attention.query.weight / large * 64)
    outputs = [
        attention(torch.where(real[..., None], x, content), mask=Mask(key_mask=real))[real]
        for content in (torch.zeros_like(x), torch.full_like(x, large / 64))
    ]
    assert torch.equal(*outputs)


@over(pairs())
def test_an_encoding_belongs_to_the_attention_that_it_is_attached_to(case: Case) -> None:
    """It is trained and saved with it, and no other sizes, nor a second layer, are let through."""
    attention, other = case.attention(), Case(case.name, case.role).attention()
    own = attention.encoding
    assert own is attention.position
    assert {f"encoding.{name}" for name in own.state_dict()} <= set(attention.state_dict())
    if own.card.per_layer:
        with pytest.raises(UserError, match=r"of its own.* belongs to another"):
            other.attach_position(own)
    else:
        other.attach_position(own)
    attention.attach_position(own)
    sizes = attention.position_sizes
    for change in ("dim", "heads", "head_dim"):
        options = small_options(str(case.position), "position")
        wrong = create_position(
            str(case.position), **sizes | {change: 2 * sizes[change]}, **options
        )
        with pytest.raises(UserError, match=f"built for {change}="):
            other.attach_position(wrong)


def test_segments_may_hold_padding_and_differ_by_row() -> None:
    """What is refused of ids is a sequence that goes on, not padding beside or between others."""
    real = torch.tensor([[False, True, True, True, False]])
    Mask(segment_ids=torch.tensor([[0, 1, 1, 2, 0]]), key_mask=real)
    Mask(segment_ids=torch.tensor([[5, 5, 1, 1, 3]]))
    Mask(segment_ids=packed([2, 3], 2))
