"""Check that the text of a picture is legible."""

from itertools import combinations
from typing import Any
from unittest.mock import patch


def visible_texts(figure: Any) -> list[Any]:
    """Return the texts that are drawn; labels of ticks out of view, for example, are not."""
    from matplotlib.text import Text

    texts = []

    def draw(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            texts.append(text)

    # The first drawing settles the layout.
    figure.canvas.draw()
    with patch.object(Text, "draw", draw):
        figure.canvas.draw()
    return texts


def assert_legible(figure: Any) -> None:
    """Assert that no text is below 8 points, cut by the edge of the canvas, or on another text."""
    canvas = figure.bbox
    boxes = []
    for text in visible_texts(figure):
        assert text.get_fontsize() >= 8, text
        box = text.get_window_extent()
        assert canvas.x0 <= box.x0 and box.x1 <= canvas.x1, text
        assert canvas.y0 <= box.y0 and box.y1 <= canvas.y1, text
        if not text.get_rotation() % 90:
            boxes.append((text.get_text(), box))
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)
