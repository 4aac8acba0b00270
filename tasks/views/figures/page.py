"""The page of the tutorial's pictures, `index.html`."""

from collections.abc import Mapping

from attention_zoo.tasks.views.figures.gallery import LESSONS, Picture, example_code, file_name
from attention_zoo.tasks.views.pages import render_page


def index_page(source: str, missing: Mapping[Picture, str]) -> str:
    """Return the page of all lessons.

    Args:
        source: a sentence that names the trained model of the pictures.
        missing: why pictures were not drawn.
    """
    return render_page(
        "views/figures/page.html",
        title="See attention",
        source=source,
        lessons=LESSONS,
        missing=missing,
        file_name=file_name,
        code=example_code,
    )
