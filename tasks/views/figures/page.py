"""`index.html` of a folder of pictures."""

from collections.abc import Mapping
from html import escape

from attention_zoo.tasks.views.figures.gallery import (
    LESSONS,
    Lesson,
    Picture,
    example_code,
    file_name,
)
from attention_zoo.tasks.views.pages import document


def index(source: str, missing: Mapping[Picture, str]) -> str:
    """The whole page.

    Args:
        source: a sentence on which model the pictures of a trained model are of.
        missing: why pictures were not drawn.
    """
    lessons = list(enumerate(LESSONS, start=1))
    links = "".join(
        f"<li><a href='#lesson-{number}'>{escape(lesson.title)}</a></li>"
        for number, lesson in lessons
    )
    sections = "".join(section(number, lesson, missing) for number, lesson in lessons)
    return document(
        "See attention",
        "<header><h1>See attention</h1><p>The pictures by which attention is explained, each drawn "
        f"by the code below it.</p><p class='soft'>{escape(source)}</p></header>"
        f"<main><nav aria-label='Lessons'><ol>{links}</ol></nav><div>{sections}</div></main>",
        of="views/figures",
    )


def section(number: int, lesson: Lesson, missing: Mapping[Picture, str]) -> str:
    """A lesson: its title, its caption, its pictures, and the code that draws them."""
    shown = "".join(
        f"<p class='missing'>{escape(picture.alt)} Not drawn: {escape(missing[picture])}</p>"
        if picture in missing
        else figure(number, picture)
        for picture in lesson.pictures
    )
    return (
        f"<section id='lesson-{number}'><h2>{number}. {escape(lesson.title)}</h2>"
        f"<p>{escape(lesson.caption)}</p>{shown}</section>"
    )


def figure(number: int, picture: Picture) -> str:
    file = file_name(number, picture)
    return (
        # To be reached by keyboard, since it may have to be scrolled.
        f"<figure><div class='scroll' role='region' tabindex='0' aria-label='{picture.name}'>"
        f"<img src='{file}' alt='{escape(picture.alt)}'></div>"
        f"<pre tabindex='0'><code>{escape(example_code(number, picture))}</code></pre></figure>"
    )
