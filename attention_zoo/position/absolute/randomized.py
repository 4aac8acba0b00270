"""Randomized positions (Ruoss et al. 2023)."""

from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.position.absolute.learned import check_length
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tensor_checks import is_readable
from attention_zoo.zoo import POSITION, PositionCard


def inner_hook(name: str) -> Any:
    """Return a method that calls this hook of the inner encoding."""

    def hook(self: "RandomizedEncoding", *args: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*args, **options)

    return hook


@POSITION.register(
    name="randomized",
    paper="Ruoss et al. 2023, arXiv 2305.16843",
    equation="E(x, i_t), with i_1 < … < i_n drawn from {0, …, L − 1} without replacement",
    reference="closed form",
    acts=("positions", "embeddings"),
    deviations="positions are drawn in training alone, where the authors' code draws them when "
    "evaluating too; then they are spread evenly over the longest sequence, not over the "
    "present one, so that no token moves as others come: a short sequence stands denser than "
    "in training",
)
class RandomizedEncoding(PositionalEncoding):
    """Gives tokens the positions of a far longer sequence, in order, for any encoding of positions.

    In training the t-th token gets the t-th smallest of n positions, drawn from all L without
    replacement, anew for each pass and alike in all rows; n is the number of columns. So short
    sequences train positions as large as those of long ones. In evaluation, token t gets the
    position t·⌊L / max_length⌋.

    Args:
        encoding: name of the encoding that gets the positions, with its default options.
        num_positions: L, from how many is drawn; at least `max_length`.
        max_length: the longest sequence, in tokens. A longer one is refused.
    """

    max_length: int

    def __init__(
        self,
        *,
        encoding: str = "sinusoidal",
        num_positions: int = 2048,
        max_length: int = 512,
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        if not 1 <= max_length <= num_positions:
            raise UserError(
                "position=randomized needs a max_length from 1 to num_positions, "
                f"got max_length={max_length}, num_positions={num_positions}."
            )
        inner = POSITION[encoding]
        if not takes_positions(POSITION.card(encoding)):
            legal = [name for name in POSITION if takes_positions(POSITION.card(name))]
            raise Unsupported(
                "position=randomized needs an encoding that takes positions, one for all "
                f"layers, got encoding={encoding}. Choices: {', '.join(legal)}."
            )
        # An encoding with a longest sequence of its own must have room for all positions.
        limit = {"max_length": num_positions} if "max_length" in signature(inner).parameters else {}
        self.inner: PositionalEncoding = inner(**sizes, **limit)
        self.num_positions = num_positions
        self.max_length = max_length
        own = self.inner.card
        card = replace(
            self.card, acts=("positions", *own.acts), roles=own.roles, relative=own.relative
        )
        if card != self.card:
            self.card = card

    def map_positions(self, positions: Tensor) -> Tensor:
        check_length(self, positions)
        if not self.training:
            return positions * (self.num_positions // self.max_length)
        columns = positions.shape[1]
        if is_readable(positions) and (positions >= columns).any():
            raise UserError(
                "position=randomized draws positions anew in each pass of training, got tokens "
                "that follow others of an earlier pass. Decode after model.eval()."
            )
        drawn = torch.randperm(self.num_positions, device=positions.device)[:columns]
        return drawn.sort().values[positions]

    embed = inner_hook("embed")
    rotate = inner_hook("rotate")
    rotate_back = inner_hook("rotate_back")
    length_spans = inner_hook("length_spans")
    rotate_by_length = inner_hook("rotate_by_length")
    score_bias = inner_hook("score_bias")
    cached_features = inner_hook("cached_features")
    content_bias = inner_hook("content_bias")
    value_bias = inner_hook("value_bias")
    naive_rotate = inner_hook("naive_rotate")
    naive_bias = inner_hook("naive_bias")
    naive_values = inner_hook("naive_values")


def takes_positions(card: PositionCard) -> bool:
    """Return whether an encoding acts on the positions it is given, once for all layers."""
    return bool(card.acts) and "positions" not in card.acts and not card.per_layer
