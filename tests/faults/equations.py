"""Faults in what attention computes, and in the modules and models around it."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.attention.dense import cosine, general, tensor_product
from attention_zoo.attention.kernel import base as kernel
from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.backends import reference
from attention_zoo.masks import Mask
from attention_zoo.position.rotary.rotary import RotaryEncoding
from tests.conformance import (
    test_maps,
    test_models,
    test_modules,
    test_naive,
)
from tests.faults.planting import ROTARY, caught_by, change_arguments, plain
from tests.parity import test_torch

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
