"""Each planted fault turns the named property red, which is green without it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from attention_zoo import masks
from attention_zoo.attention import base, softmax
from attention_zoo.attention.base import Attention
from attention_zoo.attention.dense import cosine, general, tensor_product
from attention_zoo.attention.kernel import base as kernel
from attention_zoo.attention.local import sliding_window
from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.backends import BACKENDS, flex, reference
from attention_zoo.caches import StateCache, TokenCache
from attention_zoo.masks import Mask, TokenSpan, Visibility
from attention_zoo.models import language_model
from attention_zoo.position.absolute import learned, sinusoidal
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.position.bias.alibi import AlibiEncoding
from attention_zoo.position.bias.t5_bias import T5BiasEncoding
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.position.rotary.scaled import GrowingRotary
from tests.conformance import (
    test_caches,
    test_configs,
    test_leaks,
    test_maps,
    test_masks,
    test_models,
    test_modules,
    test_naive,
    test_packing,
    test_padding,
    test_pairs,
)
from tests.conformance.cases import Case
from tests.library import test_positions
from tests.parity import test_torch

Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: list[Any] = []


def caught_by(prop: Callable[..., None], *args: object) -> Callable[[Plant], Plant]:
    """Enters a fault, with the property that must notice it."""

    def enter(plant: Plant) -> Plant:
        name = f"{plant.__name__}-{prop.__name__}"
        FAULTS.append(pytest.param(plant, partial(prop, *args), id=name))
        return plant

    return enter


def plain(name: str, role: str = "causal", position: str | None = None) -> Case:
    return Case(name, role, position)  # type: ignore[arg-type]


def render_mask_as(patch: pytest.MonkeyPatch, change: Callable[[Mask], Mask]) -> None:
    """Render masks as if they were others."""
    render_as(patch, lambda visible: replace(visible, mask=change(visible.mask)))


def render_as(patch: pytest.MonkeyPatch, change: Callable[[Visibility], Visibility]) -> None:
    """Render who sees whom as if it were something else."""
    dense = Visibility.dense
    patch.setattr(Visibility, "dense", lambda visible, device: dense(change(visible), device))


def change_arguments(
    patch: pytest.MonkeyPatch, name: str, change: Callable[..., dict[str, Any]]
) -> None:
    """Give a backend other arguments."""
    attend = BACKENDS[name].attend

    def wrong(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return attend(**{"q": q, "k": k, "v": v} | options | change(q=q, k=k, v=v, **options))

    patch.setitem(BACKENDS, name, BACKENDS[name]._replace(attend=wrong))


ALIBI, T5, ROTARY = (
    Case("multi_head", "causal", position) for position in ("alibi", "t5_bias", "rotary")
)

HALVES = [(0, 3), (1, 4), (2, 5)]

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


# Caches.


@caught_by(test_caches.test_chunks_are_one_pass, plain("multi_head", position="rotary"), [2, 9])
@caught_by(test_caches.test_chunks_are_one_pass, plain("additive", position="alibi"), [1] * 11)
def positions_not_advanced(patch: pytest.MonkeyPatch) -> None:
    resolve = base.resolve_positions
    patch.setattr(base, "resolve_positions", lambda x, positions, _=None: resolve(x, positions))


@caught_by(test_models.test_language_model_ignores_padding, "multi_head", "sinusoidal")
@caught_by(test_models.test_language_model_ignores_padding, "linear", "learned")
def places_count_padding(patch: pytest.MonkeyPatch) -> None:
    count = language_model.positions_in_row
    patch.setattr(language_model, "positions_in_row", lambda _, *rest: count(None, *rest))


@caught_by(test_models.test_language_model_keeps_packed_documents_apart, "multi_head", "sinusoidal")
def places_run_on_over_documents(patch: pytest.MonkeyPatch) -> None:
    count = language_model.positions_in_row
    patch.setattr(
        language_model,
        "positions_in_row",
        lambda key_mask, _, *rest: count(key_mask, None, *rest),
    )


@caught_by(test_caches.test_chunks_are_one_pass, plain("multi_head"), [5, 1, 1, 4])
@caught_by(test_caches.test_the_cache_is_as_large_as_its_attention_says, plain("grouped_query"))
@caught_by(test_models.test_seq2seq_decodes_in_chunks, "single_head", "none")
def later_keys_not_kept(patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def forgetful(self: TokenCache, **tokens: Tensor) -> Any:
        before = self.tokens
        result = append(self, **tokens)
        self.tokens = before or self.tokens
        return result

    patch.setattr(TokenCache, "append", forgetful)


@caught_by(test_caches.test_context_is_read_once, plain("multi_head", "cross"))
def context_read_again(patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def forgetful(self: TokenCache, **tokens: Tensor) -> Any:
        result = append(self, **tokens)
        self.tokens, self.length = {}, tokens["keys"].shape[-2]
        return result

    patch.setattr(TokenCache, "append", forgetful)


@caught_by(test_caches.test_chunks_are_one_pass, plain("linear"), [5, 1, 1, 4])
@caught_by(test_caches.test_reordering_continues_other_rows, plain("linear"), [1, 1])
def state_not_carried_on(patch: pytest.MonkeyPatch) -> None:
    product = kernel.causal_product
    patch.setattr(kernel, "causal_product", lambda q, k, v, _, __: product(q, k, v, None, None))


@caught_by(test_caches.test_reordering_continues_other_rows, plain("multi_head"), [1, 0])
@caught_by(test_caches.test_reordering_continues_other_rows, plain("linear"), [1, 1])
@caught_by(test_caches.test_reordering_the_context, plain("additive", "cross"), [1, 0])
@caught_by(test_models.test_seq2seq_decodes_in_chunks, "multi_head", "none")
def reordering_ignored(patch: pytest.MonkeyPatch) -> None:
    def as_many(kept: Tensor, index: Tensor) -> Tensor:
        return kept[torch.arange(len(index)) % len(kept)]

    def tokens(self: TokenCache, index: Tensor) -> None:
        self.tokens = {name: as_many(part, index) for name, part in self.tokens.items()}

    def states(self: StateCache, index: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(as_many(part, index) for part in self.state)

    patch.setattr(TokenCache, "reorder", tokens)
    patch.setattr(StateCache, "reorder", states)


@caught_by(test_models.test_language_model_decodes_in_chunks, "multi_head", "alibi")
def reordering_forgets_positions(patch: pytest.MonkeyPatch) -> None:
    reorder = TokenCache.reorder

    def forgetful(self: TokenCache, index: Tensor) -> None:
        positions = self.tokens["positions"]
        reorder(self, index)
        self.tokens["positions"] = positions[torch.arange(len(index)) % len(positions)]

    patch.setattr(TokenCache, "reorder", forgetful)


@caught_by(test_caches.test_chunks_are_one_pass, plain("sliding_window"), [5, 1, 1, 4])
@caught_by(test_caches.test_the_cache_is_as_large_as_its_attention_says, plain("sliding_window"))
def windowed_cache_too_short(patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def short(self: TokenCache, **tokens: Tensor) -> Any:
        result = append(self, **tokens)
        self.tokens = {name: part[..., -2:, :] for name, part in self.tokens.items()}
        return result

    patch.setattr(TokenCache, "append", short)


@caught_by(test_caches.test_the_cache_is_as_large_as_its_attention_says, plain("sliding_window"))
def windowed_cache_keeps_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TokenCache, "_latest", lambda _, part: part)


# Arithmetic.


@caught_by(test_naive.test_forward_is_the_equation, plain("multi_head"), 7)
@caught_by(test_modules.test_backends_agree, plain("single_head"), False)
@caught_by(test_maps.test_the_map_times_values_is_the_output, plain("multi_query"), False)
@caught_by(test_torch.test_single_head_attention, "causal", "sdpa")
def wrong_scale(patch: pytest.MonkeyPatch) -> None:
    change_arguments(patch, "sdpa", lambda scale, **_: {"scale": scale**2})


@caught_by(test_naive.test_forward_is_the_equation, plain("multi_head"), 7)
@caught_by(test_torch.test_encoder_layer, "post", "relu")
def wrong_scale_everywhere(patch: pytest.MonkeyPatch) -> None:
    """By the width of the model, not of the head."""
    init = SoftmaxAttention.__init__

    @wraps(init)
    def wide(self: SoftmaxAttention, **options: Any) -> None:
        init(self, **options)
        self.scale = self.dim**-0.5

    patch.setattr(SoftmaxAttention, "__init__", wide)


@caught_by(test_naive.test_forward_is_the_equation, plain("grouped_query", "global"), 7)
@caught_by(test_modules.test_backends_agree, plain("grouped_query"), True)
@caught_by(test_torch.test_grouped_heads_stand_beside_each_other)
def heads_tiled(patch: pytest.MonkeyPatch) -> None:
    """In the order 0 1 0 1 where it should be 0 0 1 1."""
    patch.setattr(
        reference, "repeat_heads", lambda x, heads: x.repeat(1, heads // x.shape[1], 1, 1)
    )


@caught_by(test_naive.test_forward_is_the_equation, plain("multi_head"), 7)
def keys_without_gradient(patch: pytest.MonkeyPatch) -> None:
    """The values are right, and only the gradients are not."""
    change_arguments(patch, "sdpa", lambda k, **_: {"k": k.detach()})


@caught_by(test_naive.test_forward_is_the_equation, plain("linear", "cross"), 7)
def sums_not_normalised(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernel, "safe_divide", lambda numerator, denominator: numerator)


# Wrong equations that share their error with whatever calls the same methods.


@caught_by(test_naive.test_forward_is_the_equation, plain("multi_head"), 7)
@caught_by(test_naive.test_forward_is_the_equation_with_an_encoding, ROTARY)
def keys_of_other_heads(patch: pytest.MonkeyPatch) -> None:
    project = Attention.project_key_value

    def flip(self: Attention, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = project(self, source)
        return k.flip(1), v

    patch.setattr(Attention, "project_key_value", flip)


@caught_by(test_naive.test_forward_is_the_equation, plain("cosine"), 7)
def cosine_of_keys_of_any_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cosine.CosineAttention, "project_key_value", Attention.project_key_value)


@caught_by(test_naive.test_forward_is_the_equation, plain("tensor_product"), 7)
def tensor_product_without_its_rank(patch: pytest.MonkeyPatch) -> None:
    products = tensor_product.outer_products
    patch.setattr(tensor_product, "outer_products", lambda a, b: products(a, b) * a.shape[1])


@caught_by(test_naive.test_forward_is_the_equation, plain("general"), 7)
def general_with_keys_flipped(patch: pytest.MonkeyPatch) -> None:
    project = general.GeneralAttention.project_key_value

    def flip(self: general.GeneralAttention, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = project(self, source)
        return k.flip(-1), v

    patch.setattr(general.GeneralAttention, "project_key_value", flip)


@caught_by(test_naive.test_forward_is_the_equation_with_an_encoding, ROTARY)
def rotary_turns_queries_twice(patch: pytest.MonkeyPatch) -> None:
    rotate = RotaryEncoding.rotate

    def twice(self: RotaryEncoding, q: Tensor, k: Tensor, positions: Tensor) -> Any:
        q, k = rotate(self, q, k, positions)
        return rotate(self, q, k, positions)[0], k

    patch.setattr(RotaryEncoding, "rotate", twice)


# Encodings.


@caught_by(test_naive.test_forward_is_the_equation_with_an_encoding, ALIBI)
@caught_by(test_modules.test_backends_agree, T5, True)
@caught_by(test_maps.test_the_map_times_values_is_the_output, ALIBI, False)
def bias_of_another_head(patch: pytest.MonkeyPatch) -> None:
    change_arguments(
        patch, "sdpa", lambda bias, **_: {"bias": None if bias is None else bias.roll(1, 1)}
    )


@caught_by(
    test_naive.test_forward_is_the_equation_with_an_encoding,
    T5,
)
def bias_forgotten(patch: pytest.MonkeyPatch) -> None:
    change_arguments(patch, "sdpa", lambda **_: {"bias": None})


@caught_by(test_positions.test_alibi_of_eight_heads)
@caught_by(test_positions.test_alibi_lowers_scores_by_the_slopes_of_the_paper, 6, "causal")
def alibi_raises_scores(patch: pytest.MonkeyPatch) -> None:
    bias = AlibiEncoding.score_bias
    patch.setattr(AlibiEncoding, "score_bias", lambda *args: -bias(*args))


@caught_by(test_positions.test_alibi_lowers_scores_by_the_slopes_of_the_paper, 8, "global")
def alibi_of_one_direction(patch: pytest.MonkeyPatch) -> None:
    def signed(self: AlibiEncoding, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = q_positions[:, :, None] - k_positions[:, None, :]
        return -self.slopes[:, None, None] * distance[:, None]

    patch.setattr(AlibiEncoding, "score_bias", signed)


@caught_by(test_positions.test_values_are_not_rotated, "multi_head")
@caught_by(test_pairs.test_an_encoding_sees_distances_only, ROTARY)
def rotary_turns_values(patch: pytest.MonkeyPatch) -> None:
    project_qkv = SoftmaxAttention.project_qkv

    def rotating(self: SoftmaxAttention, *args: Any) -> Any:
        qkv = project_qkv(self, *args)
        return qkv._replace(v=self.position.rotate(qkv.v, qkv.v, qkv.k_positions)[0])

    patch.setattr(SoftmaxAttention, "project_qkv", rotating)


@caught_by(
    test_positions.test_rotary_turns_the_pairs_of_its_layout, "half_split", [(0, 3), (1, 4), (2, 5)]
)
@caught_by(test_positions.test_rotary_products_depend_on_the_distance, "half_split")
@caught_by(test_pairs.test_an_encoding_sees_distances_only, ROTARY)
def rotary_turns_keys_backwards(patch: pytest.MonkeyPatch) -> None:
    rotate = RotaryEncoding.rotate
    patch.setattr(
        RotaryEncoding,
        "rotate",
        lambda self, q, k, positions: (
            rotate(self, q, k, positions)[0],
            rotate(self, q, k, -positions)[1],
        ),
    )


@caught_by(test_positions.test_rotary_angles_are_not_rounded_to_bfloat16)
def angles_in_bfloat16(patch: pytest.MonkeyPatch) -> None:
    rotate = RotaryEncoding.rotate
    patch.setattr(
        RotaryEncoding,
        "rotate",
        lambda self, q, k, positions: rotate(self, q, k, positions.to(torch.bfloat16)),
    )


@caught_by(test_positions.test_sinusoids_are_those_of_the_paper)
def sines_before_cosines(patch: pytest.MonkeyPatch) -> None:
    sinusoids = sinusoidal.sinusoids

    def halves(*args: Any) -> Tensor:
        woven = sinusoids(*args)
        return torch.cat([woven[..., 0::2], woven[..., 1::2]], dim=-1)

    patch.setattr(sinusoidal, "sinusoids", halves)


@caught_by(test_positions.test_t5_boundaries)
@caught_by(test_positions.test_t5_buckets_are_those_of_the_paper, "global", 32, 128)
def buckets_of_the_other_role(patch: pytest.MonkeyPatch) -> None:
    init = T5BiasEncoding.__init__

    @wraps(init)
    def other(self: T5BiasEncoding, **options: Any) -> None:
        init(self, **options)
        self.bidirectional = not self.bidirectional

    patch.setattr(T5BiasEncoding, "__init__", other)


@caught_by(test_positions.test_t5_boundaries)
def logarithm_one_off(patch: pytest.MonkeyPatch) -> None:
    log = math.log
    patch.setattr("attention_zoo.position.bias.t5_bias.math.log", lambda x: log(x + 0.5))


@caught_by(test_positions.test_learned_positions_end_at_max_length)
def long_input_cut_silently(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(learned, "check_length", lambda *_: None)
    patch.setattr(
        learned.LearnedEncoding,
        "embed",
        lambda self, x, positions: x + self.table(positions.clamp(max=self.max_length - 1)),
    )


@caught_by(test_configs.test_a_number_cannot_be_null, "attention", "sliding_window")
def window_of_null_taken(patch: pytest.MonkeyPatch) -> None:
    """So that every query sees every key."""
    patch.setattr(sliding_window, "check_positive", lambda **_: None)


@caught_by(test_pairs.test_an_attention_alone_takes_what_acts_on_it, "linear", "causal")
@caught_by(test_pairs.test_an_attention_alone_takes_what_acts_on_it, "additive", "global")
@caught_by(test_models.test_layers_share_nothing_but_the_encoding, "multi_head", "rotary")
def encoding_taken_and_not_used(patch: pytest.MonkeyPatch) -> None:
    attach = Attention.attach_position

    def first_only(self: Attention, encoding: PositionalEncoding, **options: bool) -> None:
        if "_position" not in vars(self):
            attach(self, encoding, **options)

    patch.setattr(Attention, "attach_position", first_only)


@caught_by(test_pairs.test_a_refusal_names_the_choices, "linear", "causal")
@caught_by(test_pairs.test_a_refusal_names_the_choices, "multi_head", "cross")
def every_pair_let_through(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(test_pairs, "check_pair", lambda *_: None)


@caught_by(
    test_maps.test_the_map_times_values_is_the_output, plain("multi_head", "causal", "shaw"), False
)
def nothing_given_to_values(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SoftmaxAttention,
        "attend_explicitly",
        lambda self, qkv, visible: (
            self.weights(qkv, visible) @ reference.repeat_heads(qkv.v, self.heads)
        ),
    )


@caught_by(test_models.test_language_model_does_not_see_the_future, "multi_head", "contextual")
@caught_by(test_models.test_language_model_ignores_padding, "multi_head", "dynamic_bias")
def content_read_where_it_is_masked(patch: pytest.MonkeyPatch) -> None:
    bias, everything = SoftmaxAttention.score_bias, Mask()
    patch.setattr(
        SoftmaxAttention,
        "score_bias",
        lambda self, qkv, visible: bias(self, qkv, replace(visible, mask=everything)),
    )


@caught_by(test_models.test_language_model_does_not_see_the_future, "multi_head", "dynamic_ntk")
@caught_by(test_models.test_language_model_decodes_in_chunks, "multi_head", "longrope")
def the_whole_length_for_all_queries(patch: pytest.MonkeyPatch) -> None:
    everything = PositionalEncoding.length_spans
    patch.setattr(GrowingRotary, "length_spans", everything)


@caught_by(test_models.test_layers_share_nothing_but_the_encoding, "multi_head", "shaw")
def one_encoding_where_each_layer_has_its_own(patch: pytest.MonkeyPatch) -> None:
    attach = Attention.attach_position
    first: dict[str, PositionalEncoding] = {}

    def first_of_all(
        self: Attention, encoding: PositionalEncoding, *, shared: bool = False
    ) -> None:
        if not shared:
            encoding = first.setdefault(encoding.role, encoding)
        attach(self, encoding, shared=shared)

    patch.setattr(Attention, "attach_position", first_of_all)


# Modules and models.


@caught_by(test_models.test_layers_share_nothing_but_the_encoding, "multi_head", "t5_bias")
def encoding_owned_by_every_layer(patch: pytest.MonkeyPatch) -> None:
    attach = Attention.attach_position
    patch.setattr(Attention, "attach_position", lambda self, encoding, **_: attach(self, encoding))


@caught_by(test_models.test_layers_share_nothing_but_the_encoding, "multi_head", "none")
def one_instance_in_all_layers(patch: pytest.MonkeyPatch) -> None:
    factory = test_models.attention_factory

    def shared(name: str) -> Callable[..., Attention]:
        built: dict[str, Attention] = {}
        return lambda dim, role, layer: built.setdefault(role, factory(name)(dim=dim, role=role))

    patch.setattr(test_models, "attention_factory", shared)


@caught_by(test_modules.test_dropout_only_drops_in_training, plain("multi_head"))
def dropout_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SoftmaxAttention, "training", property(lambda _: True, lambda *_: None), raising=False
    )


@caught_by(test_maps.test_the_map_times_values_is_the_output, plain("multi_head"), False)
def map_without_its_mask(patch: pytest.MonkeyPatch) -> None:
    weights = SoftmaxAttention.weights
    everything = Mask()
    patch.setattr(
        SoftmaxAttention,
        "weights",
        lambda self, qkv, visible: weights(self, qkv, replace(visible, mask=everything)),
    )


@caught_by(test_modules.test_the_whole_graph_compiles, plain("multi_head"))
def graph_broken(patch: pytest.MonkeyPatch) -> None:
    """By a branch on a value."""
    change_arguments(patch, "sdpa", lambda scale, q, **_: {"scale": scale if q.sum() > 0 else 1.0})


@pytest.mark.parametrize(("plant", "prop"), FAULTS)
def test_a_fault_is_noticed(
    plant: Plant, prop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prop()
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, torch._dynamo.exc.Unsupported)):
        prop()
