"""What every picture keeps: all of its text on the canvas, no two pieces of it on each other."""

from itertools import combinations
from typing import Any
from unittest.mock import patch


def shown_texts(figure: Any) -> list[Any]:
    """Its texts, without those that are not drawn, such as labels of ticks out of view."""
    from matplotlib.text import Text

    drawn = []

    def draw(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)

    # Settle the layout first, which draws nothing that counts.
    figure.canvas.draw()
    with patch.object(Text, "draw", draw):
        figure.canvas.draw()
    return drawn


def assert_legible(figure: Any) -> None:
    """No text is smaller than 8 points, cut by the edge of the canvas, or on another text."""
    page = figure.bbox
    boxes = []
    for text in shown_texts(figure):
        assert text.get_fontsize() >= 8, text
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text
        if not text.get_rotation() % 90:
            boxes.append((text.get_text(), box))
    for (one, box), (other, beside) in combinations(boxes, 2):
        assert not box.overlaps(beside), (one, other)
