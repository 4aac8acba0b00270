"""Every entry obeys the options of a model that extend its projections, or refuses them.

A stack with these options is compared with one without, in which hooks on the projections compute
in loops what the options mean.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import Unsupported, create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.attention.inputs import resolve_positions
from attention_zoo.attention.projections import FirstValues
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import BlockOptions
from attention_zoo.models.stacks import Decoder, Encoder, Stack
from tests.conformance.cases import DIM, Case, moved, over_values, plain_cases, small_options
from tests.conformance.definition import key_mask, packed, sequence
from tests.conformance.numbers import assert_same, values_and_gradients
from tests.conformance.test_caches import numbers_in, up_to

LENGTH, KERNEL_SIZE = 9, 3
BOTH: dict[str, Any] = {"qkv_convolution": KERNEL_SIZE, "value_residual": True}
PARTS = {name: {name: value} for name, value in BOTH.items()}
# What refuses convolutions refuses both, but may have the other option.
SWITCHES = ["both", "value_residual"]
# Each option alone, and both under every mask.
MASKED = [("both", "none"), *((x, "none") for x in PARTS)]
MASKED += [("both", name) for name in ("key_mask", "segment_ids")]
CONVOLVES = ["multi_head", "longformer", "linformer", "linear", "retention", "rwkv7", "path"]
CONVOLVES_ITSELF = ["gated_delta", "kimi_delta", "selective_scan", "state_space_dual", "rg_lru"]
PROJECTS_NO_TOKENS = ["fourier", "multi_head_latent", "tensor_product", "gru"]


def build(case: Case, switches: dict[str, Any]) -> Stack:
    stack = {"causal": Decoder, "global": Encoder}[str(case.role)](
        layers=3,
        attention=partial(create_attention, case.name, **small_options(case.name)),
        position=partial(create_position, "none"),
        options=BlockOptions(dim=DIM, ffn_dim=8, dropout=0.0, **switches),
    )
    return moved(stack).eval()


def build_or_refuse(case: Case, name: str) -> Stack | None:
    """The stack, or None where it is refused with a reason that holds."""
    try:
        return build(case, PARTS.get(name, BOTH))
    except Unsupported as refusal:
        words = str(refusal)
    assert words.startswith(case.name)
    if "value_residual" in words:
        assert "does not project each token to a value" in words
        assert case.name not in CONVOLVES + CONVOLVES_ITSELF
    elif "set its kernel_size" in words:
        assert "kernel_size" in small_options(case.name)
        assert case.name not in CONVOLVES
    else:
        assert "does not project each token to a query, a key and a value" in words
        assert case.name not in CONVOLVES + CONVOLVES_ITSELF
    return None


def self_cases() -> Iterator[Case]:
    return (case for case in plain_cases() if case.role != "cross")


def attentions(stack: Stack) -> list[Attention]:
    return [layer.self_attention.attention for layer in stack.layers]


def mask_of(case: Case, name: str) -> Mask:
    if name == "none" or not case.honours(name):
        return Mask()
    parts = {
        "key_mask": key_mask("interior", 2, LENGTH),
        "segment_ids": packed([4, 2, 3], 2),
    }
    return Mask(**{name: parts[name]})


def convolve_in_loops(weight: Tensor, y: Tensor, mask: Mask) -> Tensor:
    """y_t + Σ_l w_l ⊙ y_{t−l} over the real tokens of the same sequence."""
    rows = []
    for b, row in enumerate(y):
        tokens = []
        for t, token in enumerate(row):
            earlier = [s for s in sequence(mask, b, t, t, len(row)) if s <= t]
            for lag, s in enumerate(earlier[::-1][: weight.shape[1]]):
                token = token + weight[:, weight.shape[1] - 1 - lag] * row[s]
            tokens.append(token)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def explained(case: Case, stack: Stack, mask: Mask) -> Stack:
    """A stack without options, with the weights of another one and hooks that do what it does."""
    plain = build(case, {})
    weights = dict(stack.named_parameters())
    plain.load_state_dict(stack.state_dict(), strict=False)
    first: dict[str, Tensor] = {}

    # An attention that counts columns gets the real tokens of a row before its padding.
    order = torch.arange(LENGTH).expand(2, -1)
    attention = attentions(plain)[0]
    counts = attention.counts_columns or attention.window is not None
    if mask.key_mask is not None and counts:
        order = (~mask.key_mask).long().argsort(dim=1, stable=True)
    rows = torch.arange(2)[:, None]

    def hook(prefix: str, name: str, _: nn.Module, __: Any, y: Tensor) -> Tensor:
        kernel = weights.get(f"{prefix}.convolution.weight")
        y = y[rows, order.argsort(dim=1)]
        y = y if kernel is None else convolve_in_loops(kernel, y, mask)
        mixing = weights.get(f"{prefix}.mixing")
        if mixing is not None:
            y = mixing[0] * first[name] + mixing[1] * y
        else:
            first[name] = y
        return y[rows, order]

    for index, attention in enumerate(attentions(plain)):
        for name, part in attention.named_children():
            if isinstance(part, nn.Linear):
                prefix = f"layers.{index}.self_attention.attention.{name}"
                part.register_forward_hook(partial(hook, prefix, name))
    # The same parameters, so that gradients can be compared one by one.
    for name, parameter in plain.named_parameters():
        owner, _, last = name.rpartition(".")
        assert parameter.shape == weights[name].shape
        setattr(plain.get_submodule(owner), last, weights[name])
    return plain


def run(stack: Stack, mask: Mask, x: Tensor, **options: Any) -> Tensor:
    starts = resolve_positions(x)
    if mask.segment_ids is not None:
        rows = [torch.cat([torch.arange(n) for n in row.bincount()]) for row in mask.segment_ids]
        starts = torch.stack(rows)
    out = stack(x, mask=mask, positions=starts, **options)
    return out if mask.key_mask is None else out.masked_fill(~mask.key_mask[..., None], 0.0)


@over_values("switches,masked", MASKED, self_cases())
def test_a_stack_computes_what_its_options_mean(case: Case, switches: str, masked: str) -> None:
    stack, mask = build_or_refuse(case, switches), mask_of(case, masked)
    if stack is None:
        return
    plain = explained(case, stack, mask)
    (x,) = case.inputs(LENGTH)
    assert_same(
        values_and_gradients(partial(run, stack, mask), stack, x),
        values_and_gradients(partial(run, plain, mask), stack, x),
    )
    assert not torch.allclose(run(stack, mask, x), run(build_plain(case, stack), mask, x))


def build_plain(case: Case, stack: Stack) -> Stack:
    plain = build(case, {})
    plain.load_state_dict(stack.state_dict(), strict=False)
    return plain


@pytest.mark.parametrize("name", CONVOLVES_ITSELF + PROJECTS_NO_TOKENS)
def test_what_has_no_projections_to_convolve_is_refused(name: str) -> None:
    case = next(case for case in self_cases() if case.name == name)
    assert build_or_refuse(case, "qkv_convolution") is None
    assert (build_or_refuse(case, "value_residual") is None) is (name in PROJECTS_NO_TOKENS)


@over_values("switches,masked", MASKED, (case for case in self_cases() if case.decodes))
def test_chunks_are_one_pass(case: Case, switches: str, masked: str) -> None:
    stack, mask = build_or_refuse(case, switches), mask_of(case, masked)
    if stack is None:
        return
    assert isinstance(stack, Decoder)
    (x,) = case.inputs(LENGTH)
    cache, parts = stack.new_cache(), []
    for part in x.split([4, 1, 1, 0, 3], dim=1):
        start, stop = cache.length, cache.length + part.shape[1]
        own = up_to(mask, stop)
        positions = torch.arange(start, stop)[None]
        parts.append(stack(part, mask=own, positions=positions, cache=cache))
    whole = stack(x, mask=mask, positions=resolve_positions(x))
    together = torch.cat(parts, dim=1)
    real = torch.ones(2, LENGTH, dtype=torch.bool) if mask.key_mask is None else mask.key_mask
    assert_same(together[real], whole[real])
    if masked != "none":
        return
    cache.reorder(torch.tensor([1, 0, 1]))
    new, x = torch.randn(3, 2, DIM), x[[1, 0, 1]]
    joined = torch.cat([x, new], dim=1)
    positions = resolve_positions(joined)
    after = stack(new, mask=Mask(), positions=positions[:, LENGTH:], cache=cache)
    assert_same(after, stack(joined, mask=Mask(), positions=positions)[:, LENGTH:])


@over_values("switches", SWITCHES, self_cases())
def test_padding_sequences_and_no_tokens(case: Case, switches: str) -> None:
    """The content of padding does not matter, packed is separate, and nothing comes of nothing."""
    stack = build_or_refuse(case, switches)
    if stack is None:
        return
    (x,) = case.inputs(LENGTH)
    if case.honours("key_mask"):
        mask = Mask(key_mask=key_mask("interior", 2, LENGTH))
        assert mask.key_mask is not None
        other = torch.where(mask.key_mask[..., None], x, 100.0 * torch.randn_like(x))
        assert_same(run(stack, mask, other), run(stack, mask, x))
    if case.packs:
        mask = Mask(segment_ids=packed([4, 5], 2))
        assert mask.segment_ids is not None
        together = run(stack, mask, x)
        for row, number in ((0, 0), (0, 1), (1, 1)):
            own = mask.segment_ids[row] == number
            assert_same(together[row, own], run(stack, Mask(), x[row, own][None])[0])
    for rows, length in ((2, 0), (0, 3), (0, 0)):
        (empty,) = case.inputs(length, batch=rows)
        out, *gradients = values_and_gradients(partial(run, stack, Mask()), stack, empty)
        assert out.shape == empty.shape
        assert all(part.isfinite().all() for part in gradients)


@over_values("switches", SWITCHES, self_cases())
def test_the_map_times_values_is_the_output(case: Case, switches: str) -> None:
    stack = build_or_refuse(case, switches)
    if stack is None:
        return
    (x,) = case.inputs(LENGTH)
    first = FirstValues()
    for attention in attentions(stack):
        out = attention(x, first_values=first)
        weights = attention.attention_map(x, first_values=first)
        attended = attention.apply_weights(weights, attention.values(x, first_values=first))
        assert_same(attention.project_output(attended, x), out)


@over_values("switches", SWITCHES, (case for case in self_cases() if case.decodes))
def test_the_cache_has_the_states_of_convolutions(case: Case, switches: str) -> None:
    """Of each projection the last K − 1 outputs; the first layer's values are not kept."""
    stack = build_or_refuse(case, switches)
    if stack is None:
        return
    plain, (x,) = build_plain(case, stack), case.inputs(LENGTH)
    kept = []
    for part in (stack, plain):
        assert isinstance(part, Decoder)
        cache = part.new_cache()
        part(x, mask=Mask(), positions=resolve_positions(x), cache=cache)
        kept.append(sum(x[0].numel() for x in numbers_in(cache)))
    channels = [
        part.weight.shape[0]
        for name, part in stack.named_modules()
        if name.endswith((".query.convolution", ".key.convolution", ".value.convolution"))
    ]
    assert kept[0] - kept[1] == (KERNEL_SIZE - 1) * sum(channels)
    for one, other in zip(stack.layers, plain.layers, strict=True):
        states = [part.self_attention.decode_state(LENGTH) for part in (one, other)]
        assert states[0] - states[1] == (KERNEL_SIZE - 1) * sum(channels) // 3
