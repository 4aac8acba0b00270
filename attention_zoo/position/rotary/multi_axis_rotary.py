"""Rotary positions of several axes, M-RoPE (Wang et al. 2024)."""

from typing import Any

from torch import Tensor

from attention_zoo.errors import UserError, check_positive
from attention_zoo.position.rotary.grid import GridRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="multi_axis_rotary",
    also_called=("mrope",),
    paper="Wang et al. 2024, arXiv 2409.12191",
    equation="rotary, where the pairs of each section turn by one of ⌊t/hw⌋, ⌊t/w⌋ mod h, t mod w",
    reference="transformers Qwen2VLAttention",
    acts=("heads",),
    relative=False,
    deviations="the sequence is one video: frames of h rows of w tokens, from position 0. Text, "
    "whose tokens have the same position on all axes in Qwen2-VL, has none of its own here",
)
class MultiAxisRotaryEncoding(GridRotary):
    """Divides the pairs into three sections, which turn by the frame, the row and the column.

    The token at t is in frame ⌊t/hw⌋, in row ⌊t/w⌋ mod h and in column t mod w. The frequencies are
    those of `rotary`, ω_i = base^(−2i/c): the frame has the fastest pairs, the column the slowest.

    Args:
        grid_height: h, in rows.
        grid_width: w, in tokens.
        sections: numbers of pairs for frame, row and column, c/2 together; default: a quarter of
            the pairs, rounded down, and halves of the others, as in Qwen2-VL.
    """

    def __init__(
        self,
        *,
        grid_height: int = 16,
        grid_width: int = 16,
        sections: list[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_positive(grid_height=grid_height, grid_width=grid_width)
        pairs = self.width // 2
        if sections is None:
            frame, row = pairs // 4, (pairs - pairs // 4) // 2
            sections = [frame, row, pairs - frame - row]
        is_list = isinstance(sections, list) and all(isinstance(part, int) for part in sections)
        if not is_list or len(sections) != 3 or sum(sections) != pairs or min(sections) < 0:
            raise UserError(
                f"sections must be three numbers of pairs that make {pairs} together, for frame, "
                f"row and column, got {sections!r}."
            )
        self.grid_height = grid_height
        self.grid_width = grid_width
        self.sections = sections

    def coordinates(self, positions: Tensor) -> Tensor:
        rows = positions.div(self.grid_width, rounding_mode="floor")
        frames = rows.div(self.grid_height, rounding_mode="floor")
        axes = (frames, rows - frames * self.grid_height, positions - rows * self.grid_width)
        return self.repeat_axes(axes, self.sections)

    def naive_coordinate(self, pair: int, positions: Tensor) -> Tensor:
        if pair < self.sections[0]:
            return positions // (self.grid_height * self.grid_width)
        if pair < self.sections[0] + self.sections[1]:
            return positions // self.grid_width % self.grid_height
        return positions % self.grid_width
