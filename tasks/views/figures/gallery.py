"""The lessons of the tutorial with their pictures, in order, and their page, `index.html`."""

from collections.abc import Callable, Mapping
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from attention_zoo.tasks.views.figures import trained_task
from attention_zoo.tasks.views.figures.animation import animate_translation
from attention_zoo.tasks.views.figures.causality import draw_causality
from attention_zoo.tasks.views.figures.cross_attention import draw_cross_attention
from attention_zoo.tasks.views.figures.diagram import draw_architecture
from attention_zoo.tasks.views.figures.encodings import draw_positional_encodings
from attention_zoo.tasks.views.figures.heads import draw_multi_head, draw_two_heads
from attention_zoo.tasks.views.figures.patterns import draw_biases, draw_masks
from attention_zoo.tasks.views.figures.roles import draw_roles
from attention_zoo.tasks.views.figures.scaling import draw_scaling
from attention_zoo.tasks.views.figures.soft_lookup import draw_soft_lookup
from attention_zoo.tasks.views.figures.steps import draw_steps
from attention_zoo.tasks.views.figures.word_order import draw_word_order
from attention_zoo.tasks.views.pages import create_environment, render_page

LINE = "Wednesday, March 4, 2026"


class Picture(NamedTuple):
    """A picture, and the function that draws it.

    The parameters of the function are some of `task`, a trained `TranslationTask`; `model`, that of
    the task; `line`, the line to translate; `path`, the file of an animation.
    """

    name: str  # of its file, without the number of the lesson and the suffix
    draw: Callable[..., Figure | None]

    @property
    def alt(self) -> str:
        """Return the text for readers who do not see the picture."""
        template: Any = create_environment().get_template("views/figures/alt_texts.html")
        return template.module.alt_texts[self.name]

    @property
    def parameters(self) -> list[str]:
        """Return the names of the function's parameters."""
        return [*signature(self.draw).parameters]

    @property
    def needs_model(self) -> bool:
        """Return whether the picture shows a trained model."""
        return bool({"task", "model"} & {*self.parameters})

    @property
    def suffix(self) -> str:
        """Return the suffix of the file."""
        return ".gif" if "path" in self.parameters else ".png"


class Lesson:
    """A lesson with its pictures."""

    def __init__(self, title: str, caption: str, *pictures: Picture) -> None:
        self.title = title
        self.caption = caption
        self.pictures = pictures


LESSONS = (
    Lesson(
        "A dictionary that answers with a mixture",
        "A dictionary returns the value of the one key that equals the query. Attention compares "
        "the query with every key, and returns a mixture of all values; the closer the key, the "
        "larger the weight. At a low temperature only the nearest key counts. The mixture is "
        "differentiable, so queries and keys can be learned.",
        Picture("dictionary", draw_soft_lookup),
    ),
    Lesson(
        "Self-attention, step by step",
        "QKᵀ compares every word with every word. Its rows weight the values in the sums of the "
        "output. Without scale and softmax, scores can be negative and sums of any size. Softmax "
        "turns each row of scores into positive weights that sum to 1.",
        Picture("steps", draw_steps),
    ),
    Lesson(
        "Why scores are divided by √d",
        "The dot product of two vectors of width d is a sum of d terms, and its standard deviation "
        "grows as √d. Softmax over large scores gives nearly all the weight to one key, and then "
        "its gradient is close to 0. Divided by √d, scores have the same size at every width.",
        Picture("scaling", draw_scaling),
    ),
    Lesson(
        "Three roles of attention",
        "Lines join queries above to the keys below that they may attend to. In the encoder, every "
        "word attends to the whole source (global). In the decoder, a word attends to itself and "
        "the words before it (causal), and to the whole source (cross). The grids are the masks, "
        "with a row for each query.",
        Picture("layers", draw_roles),
    ),
    Lesson(
        "Causal attention: no word changes an output before it",
        "One word is replaced, and the outputs are compared. With causal attention, the outputs "
        "before it stay the same to the last bit; with global attention, all change. So a decoder "
        "can be trained on all positions of a sentence at once, and decoding can cache the keys "
        "and values of earlier words.",
        Picture("causal", draw_causality),
    ),
    Lesson(
        "Four positional encodings",
        "Sinusoidal and learned vectors are added to the embeddings, rotary positions rotate "
        "queries and keys, and ALiBi lowers scores. Below are the dot products of two positions: "
        "with sinusoidal and rotary positions, they fall with the distance. A learned table knows "
        "no distance before training. ALiBi has a different slope for each head.",
        Picture("positions", draw_positional_encodings),
    ),
    Lesson(
        "Order matters",
        "Attention by itself ignores the order of words: in another order, each word gets the same "
        "output, in another row. With positions, the outputs differ.",
        Picture("order", draw_word_order),
    ),
    Lesson(
        "Several heads",
        "The columns of queries, keys and values are split into heads. Each head attends with its "
        "own weights; the outputs are joined and mixed by one more projection. So one word can "
        "attend to several others at once, for different reasons.",
        Picture("heads", draw_multi_head),
        Picture("two-heads", draw_two_heads),
    ),
    Lesson(
        "Cross-attention in a translation",
        "Each row is a word of the translation, each column a word of the source. English and "
        "Portuguese put day and month in different orders, and there the marks leave the diagonal.",
        Picture("translation", draw_cross_attention),
    ),
    Lesson(
        "Decoding token by token",
        "The decoder writes one token at a time. For each, it attends to the source anew, with a "
        "query that depends on the tokens before.",
        Picture("writing", animate_translation),
    ),
    Lesson(
        "The whole model",
        "Encoder and decoder are stacks of N equal layers. An encoder layer has global "
        "self-attention and a feed-forward network; a decoder layer has causal self-attention, "
        "cross-attention and a feed-forward network. Every sublayer adds its output to its input. "
        "The diagram is drawn from the model itself.",
        Picture("architecture", draw_architecture),
    ),
    Lesson(
        "Masks and biases of the zoo",
        "A mask decides which keys a query may attend to; a bias raises or lowers scores. These "
        "are all masks and biases of the zoo, drawn by the code that computes them. Patterns and "
        "biases that depend on content or are learned are one example.",
        Picture("masks", draw_masks),
        Picture("biases", draw_biases),
    ),
)


def file_name(number: int, picture: Picture) -> str:
    """Return the name of a picture's file, such as `08-two-heads.png` for lesson 8."""
    return f"{number:02}-{picture.name}{picture.suffix}"


def draw_picture(picture: Picture, path: Path, task: Any = None) -> Figure | None:
    """Return the figure of a picture, or write an animation to the path and return None."""
    arguments = {"task": task, "model": getattr(task, "model", None), "line": LINE, "path": path}
    return picture.draw(*(arguments[name] for name in picture.parameters))


def save_picture(picture: Picture, path: Path, task: Any = None) -> None:
    """Save a picture as a small file that is sharp on dense screens."""
    figure = draw_picture(picture, path, task)
    if figure is not None:
        buffer = BytesIO()
        figure.savefig(buffer, dpi=150)
        with Image.open(buffer) as image:
            # This method keeps the ends of colour bars, which few pixels have.
            image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path)


def example_code(number: int, picture: Picture) -> str:
    """Return the Python code with which a reader can draw a picture."""
    function = picture.draw.__name__
    lines = [f"from {picture.draw.__module__} import {function}"]
    if picture.needs_model:
        functions = "find_newest_translation, load_translation"
        lines += [f"from {trained_task.__name__} import {functions}", ""]
        lines.append("task = load_translation(find_newest_translation())")
    file = f'"{file_name(number, picture)}"'
    arguments = {"task": "task", "model": "task.model", "line": f'"{LINE}"', "path": file}
    call = f"{function}({', '.join(arguments[name] for name in picture.parameters)})"
    lines.append(call if "path" in picture.parameters else f"{call}.savefig({file})")
    return "\n".join(lines)


def index_page(source: str, missing: Mapping[Picture, str]) -> str:
    """Return the page of all lessons; `missing` tells why pictures were not drawn."""
    functions = {"file_name": file_name, "code": example_code}
    values = {"title": "See attention", "source": source, "lessons": LESSONS, "missing": missing}
    return render_page("views/figures/page.html", **values, **functions)
