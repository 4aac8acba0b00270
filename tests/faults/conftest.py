"""Numbers are compared in float64 here too, and FlexAttention's gradients are there."""

from tests.conformance.conftest import float64, gradients_of_flex

__all__ = ["float64", "gradients_of_flex"]
