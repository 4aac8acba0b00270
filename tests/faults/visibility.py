"""Faults in who sees whom."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from attention_zoo import masks
from attention_zoo.attention import softmax, unpadding
from attention_zoo.attention.base import Attention
from attention_zoo.attention.kernel import base as kernel
from attention_zoo.attention.local.compressed import CompressedAttention, Entries
from attention_zoo.backends import flex, reference
from attention_zoo.masks import Mask, TokenSpan, Visibility
from tests.conformance import (
    test_caches,
    test_leaks,
    test_maps,
    test_masks,
    test_models,
    test_modules,
    test_naive,
    test_packing,
    test_padding,
)
from tests.faults.planting import caught_by, change_arguments, plain, render_as, render_mask_as
from tests.parity import test_torch

# Leaks.


@caught_by(test_leaks.test_no_gradient_reaches_the_future, plain("additive"), 7, range(7))
@caught_by(test_leaks.test_a_prefix_gives_the_prefix_of_the_output, plain("additive"), 7)
@caught_by(test_naive.test_forward_is_the_equation, plain("sliding_window"), 7)
@caught_by(test_masks.test_all_fields_at_once, plain("multi_head"))
def causal_mask_shifted_by_one(patch: pytest.MonkeyPatch) -> None:
    def shift(visible: Visibility) -> Visibility:
        by = int(visible.mask.causal)
        mask = replace(visible.mask, segment_ids=None, query_segment_ids=None)
        rows = range(visible.rows.start + by, visible.rows.stop + by)
        return replace(visible, mask=mask, rows=rows)

    render_as(patch, shift)


@caught_by(test_leaks.test_no_gradient_reaches_the_future, plain("multi_head"), 7, range(7))
@caught_by(test_leaks.test_a_prefix_gives_the_prefix_of_the_output, plain("multi_head"), 7)
@caught_by(test_modules.test_backends_agree, plain("multi_head"), False)
@caught_by(test_models.test_language_model_does_not_see_the_future, "multi_head", "rotary")
@caught_by(test_torch.test_multi_head_attention, "causal", False)
def triangle_forgotten(patch: pytest.MonkeyPatch) -> None:
    change_arguments(patch, "sdpa", lambda visible, **_: {"visible": replace(visible, mask=Mask())})


@caught_by(test_caches.test_chunks_are_one_pass, plain("multi_head"), [5, 1, 1, 4])
def mask_aligned_at_the_top_left(patch: pytest.MonkeyPatch) -> None:
    """As SDPA's own `is_causal`: query i sees the first i keys, with a cache too."""
    render_as(patch, lambda visible: replace(visible, rows=range(len(visible.rows))))


@caught_by(test_caches.test_every_backend_decodes, plain("multi_head"))
def places_forgotten_by_flex(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flex, "offset", lambda number, device: 0)


@caught_by(test_naive.test_forward_is_the_equation, plain("big_bird"), 65)
def patterns_forgotten_by_flex(patch: pytest.MonkeyPatch) -> None:
    change_arguments(
        patch, "flex", lambda visible, **_: {"visible": replace(visible, pattern=None)}
    )


@caught_by(test_leaks.test_no_gradient_reaches_the_future, plain("linear"), 65, [0, 63, 64])
@caught_by(test_naive.test_forward_is_the_equation, plain("linear"), 7)
def next_token_in_the_state(patch: pytest.MonkeyPatch) -> None:
    product = kernel.causal_product
    patch.setattr(
        kernel,
        "causal_product",
        lambda q, k, v, *rest: product(q, k.roll(-1, dims=2), v.roll(-1, dims=2), *rest),
    )


# Masks.


@caught_by(test_naive.test_forward_is_the_equation, plain("sliding_window"), 7)
@caught_by(test_naive.test_forward_is_the_equation, plain("sliding_window", "global"), 65)
@caught_by(test_masks.test_windows_of_every_size, plain("multi_head", "global"), 3)
def window_one_too_wide(patch: pytest.MonkeyPatch) -> None:
    render_mask_as(patch, lambda mask: replace(mask, window=mask.window and mask.window + 1))


@caught_by(test_naive.test_forward_is_the_equation, plain("sliding_window"), 7)
@caught_by(test_masks.test_windows_of_every_size, plain("additive"), 3)
def window_one_too_narrow(patch: pytest.MonkeyPatch) -> None:
    intersect = Mask.intersect

    def narrower(mask: Mask, **options: Any) -> Mask:
        mask = intersect(mask, **options)
        return replace(mask, window=mask.window and max(mask.window - 1, 1))

    patch.setattr(Mask, "intersect", narrower)


@caught_by(test_naive.test_forward_is_the_equation, plain("sliding_window", "global"), 7)
@caught_by(test_masks.test_windows_of_every_size, plain("multi_head", "global"), 2)
def window_with_its_sides_exchanged(patch: pytest.MonkeyPatch) -> None:
    span = masks.window_span
    patch.setattr(masks, "window_span", lambda *args: span(*args)[::-1])


@caught_by(test_padding.test_content_of_padding_is_irrelevant, plain("multi_head"), "left", 7)
@caught_by(
    test_padding.test_content_of_padding_is_irrelevant, plain("grouped_query", "cross"), "right", 7
)
@caught_by(test_masks.test_a_field_is_obeyed_or_refused, plain("additive", "global"), "key_mask")
@caught_by(test_masks.test_a_query_that_sees_nothing_gives_zeros, plain("multi_head", "cross"))
@caught_by(test_maps.test_the_map_times_values_is_the_output, plain("multi_head", "global"), True)
@caught_by(test_models.test_language_model_ignores_padding, "multi_head", "none")
@caught_by(test_models.test_seq2seq_ignores_padding_and_the_future, "multi_head", "none")
def padding_ignored(patch: pytest.MonkeyPatch) -> None:
    render_mask_as(patch, lambda mask: replace(mask, key_mask=None))


@caught_by(
    test_padding.test_a_padded_row_is_that_of_its_real_tokens,
    plain("strided_sparse"),
    "alternating",
    23,
)
@caught_by(
    test_padding.test_padding_takes_no_place_in_a_window, plain("multi_head"), "everywhere", 23
)
@caught_by(
    test_padding.test_padding_takes_no_place_in_the_window_of_a_mask,
    plain("multi_head", "global"),
    "everywhere",
    23,
)
@caught_by(
    test_padding.test_the_map_of_a_padded_row_is_that_of_its_real_tokens,
    plain("nystrom", "global"),
    "alternating",
)
def padding_in_the_way(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unpadding, "find_order", lambda *_, **__: None)


@caught_by(test_padding.test_content_of_padding_is_irrelevant, plain("linear"), "interior", 7)
@caught_by(test_padding.test_content_of_padding_is_irrelevant, plain("linear", "cross"), "left", 65)
@caught_by(test_masks.test_a_query_that_sees_nothing_gives_zeros, plain("linear", "global"))
def padding_ignored_in_the_sums(patch: pytest.MonkeyPatch) -> None:
    project_features = kernel.KernelAttention.project_features

    def careless(self: Any, x: Tensor, context: Any, span: TokenSpan, positions: Any) -> Any:
        return project_features(self, x, context, TokenSpan(start=span.start), positions)

    patch.setattr(kernel.KernelAttention, "project_features", careless)


@caught_by(test_masks.test_a_field_is_obeyed_or_refused, plain("multi_head", "cross"), "key_mask")
@caught_by(test_torch.test_multi_head_attention, "global", True)
def padding_upside_down(patch: pytest.MonkeyPatch) -> None:
    """True = block, as `nn.MultiheadAttention` has it."""
    render_mask_as(
        patch,
        lambda mask: mask if mask.key_mask is None else replace(mask, key_mask=~mask.key_mask),
    )


@caught_by(test_packing.test_packed_is_separate, plain("multi_head"), [3, 1, 5])
@caught_by(test_packing.test_packed_is_separate, plain("additive", "cross"), [3, 1, 5])
@caught_by(test_models.test_language_model_keeps_packed_documents_apart, "grouped_query", "rotary")
def segments_ignored(patch: pytest.MonkeyPatch) -> None:
    render_mask_as(patch, lambda mask: replace(mask, segment_ids=None, query_segment_ids=None))


@caught_by(test_packing.test_packed_is_separate, plain("linear"), [40, 30, 2])
def segments_ignored_in_the_state(patch: pytest.MonkeyPatch) -> None:
    product = kernel.causal_product
    patch.setattr(kernel, "causal_product", lambda *args: product(*args[:4], None))


@caught_by(test_masks.test_a_query_that_sees_nothing_gives_zeros, plain("additive", "cross"))
@caught_by(test_masks.test_a_query_that_sees_nothing_gives_zeros, plain("multi_head", "global"))
def softmax_of_nothing(patch: pytest.MonkeyPatch) -> None:
    def naive(scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores.softmax(dim=-1)

    patch.setattr(reference, "masked_softmax", naive)
    patch.setattr(softmax, "masked_softmax", naive)


@caught_by(test_masks.test_a_field_is_obeyed_or_refused, plain("linear"), "window")
@caught_by(test_masks.test_a_field_is_obeyed_or_refused, plain("multi_head", "cross"), "causal")
def masks_swallowed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Attention,
        "effective_mask",
        lambda self, mask, *_: mask.intersect(causal=self.role == "causal", window=self.window),
    )


@caught_by(test_leaks.test_no_gradient_reaches_the_future, plain("heavily_compressed"), 7, range(7))
@caught_by(test_naive.test_forward_is_the_equation, plain("compressed_sparse"), 7)
def blocks_seen_before_they_are_whole(patch: pytest.MonkeyPatch) -> None:
    compress_tokens = CompressedAttention.compress_tokens

    def compress_early(self: CompressedAttention, *args: Any) -> Entries:
        entries = compress_tokens(self, *args)
        return entries._replace(visible=entries.visible.roll(-1, dims=2))

    patch.setattr(CompressedAttention, "compress_tokens", compress_early)
