"""Faults of positional encodings."""

import math
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from attention_zoo import factory
from attention_zoo.attention.base import Attention
from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.backends import reference
from attention_zoo.masks import Mask
from attention_zoo.position.absolute import learned, sinusoidal
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.position.bias.alibi import AlibiEncoding
from attention_zoo.position.bias.t5_bias import T5BiasEncoding
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.position.rotary.scaled import GrowingRotary
from tests.conformance import (
    test_configs,
    test_maps,
    test_models,
    test_modules,
    test_naive,
    test_pairs,
)
from tests.faults.planting import ALIBI, ROTARY, T5, caught_by, change_arguments, plain
from tests.library import test_positions


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


@caught_by(
    test_pairs.test_rotating_back_is_the_transpose_of_rotating_a_query, "rotary", "half_split"
)
@caught_by(
    test_pairs.test_an_encoding_sees_distances_only, plain("heavily_compressed", position="rotary")
)
def sums_rotated_forth_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        RotaryEncoding,
        "rotate_back",
        lambda self, x, positions: self.rotate(x, x, positions)[0],
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
    patch.setattr(factory, "check_type", lambda *_: None)


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
