"""Faults in what extends the projections of an attention."""

from typing import Any

import pytest
from torch import Tensor

from attention_zoo.attention import projections
from attention_zoo.attention.projections import FirstValues, ProjectionPass, TokenProjection
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.caches import ConvolutionCache
from attention_zoo.masks import TokenSpan
from tests.conformance import test_projections
from tests.faults.planting import caught_by, plain

MEANING = test_projections.test_a_stack_computes_what_its_options_mean
CHUNKS = test_projections.test_chunks_are_one_pass


@caught_by(CHUNKS, plain("multi_head"), "qkv_convolution", "none")
@caught_by(CHUNKS, plain("linear"), "both", "none")
def projections_start_anew(patch: pytest.MonkeyPatch) -> None:
    enter = ProjectionPass.__enter__

    def forgetful(self: ProjectionPass) -> Any:
        if isinstance(self.cache, ConvolutionCache):
            self.cache.states = {}
        return enter(self)

    patch.setattr(ProjectionPass, "__enter__", forgetful)


@caught_by(MEANING, plain("multi_head"), "both", "segment_ids")
@caught_by(MEANING, plain("linear", "global"), "both", "key_mask")
def projections_run_over_the_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        ProjectionPass,
        "convolve",
        lambda self, label, convolution, y: convolution(y, TokenSpan())[0],
    )


@caught_by(CHUNKS, plain("multi_head"), "qkv_convolution", "none")
def states_of_projections_not_reordered(patch: pytest.MonkeyPatch) -> None:
    def reorder(self: ConvolutionCache, index: Tensor) -> None:
        assert self.attention is not None
        self.attention.reorder(index)
        self.states = {name: x[[0, 1, 0]] for name, x in self.states.items()}

    patch.setattr(ConvolutionCache, "reorder", reorder)


@caught_by(MEANING, plain("multi_head"), "qkv_convolution", "none")
def projections_replaced_by_the_convolution(patch: pytest.MonkeyPatch) -> None:
    forward = ShortConvolution.forward

    def without_itself(self: ShortConvolution, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        y, state = forward(self, x, *rest)
        return y - x, state

    patch.setattr(ShortConvolution, "forward", without_itself)


@caught_by(MEANING, plain("retention"), "value_residual", "none")
def weights_of_values_swapped(patch: pytest.MonkeyPatch) -> None:
    forward = TokenProjection.forward

    def swapped(self: TokenProjection, x: Tensor) -> Tensor:
        mixing = self.mixing
        if mixing is None:
            return forward(self, x)
        self._parameters["mixing"] = mixing.flip(0)  # type: ignore[assignment]
        try:
            return forward(self, x)
        finally:
            self._parameters["mixing"] = mixing

    patch.setattr(TokenProjection, "forward", swapped)


@caught_by(MEANING, plain("multi_head", "global"), "both", "none")
def values_are_those_of_the_layer_before(patch: pytest.MonkeyPatch) -> None:
    forward = TokenProjection.forward

    def leave(self: TokenProjection, x: Tensor) -> Tensor:
        y = forward(self, x)
        first = None if self.current_pass is None else self.current_pass.first_values
        if isinstance(first, FirstValues):
            first.values[self.label] = y
        return y

    patch.setattr(projections.TokenProjection, "forward", leave)


@caught_by(MEANING, plain("multi_head"), "value_residual", "none")
def first_values_without_gradient(patch: pytest.MonkeyPatch) -> None:
    forward = TokenProjection.forward

    def detached(self: TokenProjection, x: Tensor) -> Tensor:
        first = None if self.current_pass is None else self.current_pass.first_values
        if self.mixing is not None and first is not None:
            first.values = {name: x.detach() for name, x in first.values.items()}
        return forward(self, x)

    patch.setattr(TokenProjection, "forward", detached)
