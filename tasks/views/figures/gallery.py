"""The pictures by which attention is explained, in the order in which they are told."""

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

LINE = "Wednesday, March 4, 2026"


class Picture(NamedTuple):
    """A picture, and what draws it.

    Args:
        name: the stem of its file, behind the number of its lesson.
        function: what draws it, as module.function of this package.
        alt: what is to be seen, for who does not see it.
        takes: what it is given: `task`, a trained translation; `model`, that of the task; `line`,
            what is translated; `path`, where it writes an animation itself. What is given no path
            returns a figure.
    """

    name: str
    function: str
    alt: str
    takes: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether it is of a trained model."""
        return bool({"task", "model"} & {*self.takes})

    @property
    def suffix(self) -> str:
        return ".gif" if "path" in self.takes else ".png"


class Lesson(NamedTuple):
    """One point, with the pictures that make it."""

    title: str
    caption: str
    pictures: tuple[Picture, ...]


LESSONS = (
    Lesson(
        "A dictionary that answers with a mixture",
        "A dictionary gives the value of the one key that equals the word asked for. Attention "
        "asks every key how close it is, and answers with a mixture of all values, the nearest "
        "key's most. At a low temperature the nearest entry alone is left, and since nothing "
        "jumps, gradients can teach queries and keys what they should mean.",
        (
            Picture(
                "dictionary",
                "dictionary.soft_dictionary",
                "Three panels: arrows of the keys type, color and age and of the word species, "
                "which lies next to type; bars of weights, pickup 0.53, blue 0.33, 22 0.14; the "
                "weights over temperature, from pickup alone to a third each.",
            ),
        ),
    ),
    Lesson(
        "Self-attention, step by step",
        "Every word is compared with every word, QKᵀ, and the results say how much of each word's "
        "value goes into the sum. Without scale and softmax, scores can be negative and sums of "
        "any size. Softmax makes each row of scores weights that are positive and add up to 1.",
        (
            Picture(
                "steps",
                "steps.step_by_step",
                "Two rows of matrices with their numbers. Above: Q times K transposed, times V. "
                "Below: the same with a division by the root of 3 and softmax in between.",
            ),
        ),
    ),
    Lesson(
        "Why scores are divided by √d",
        "A product of two vectors of width d is a sum of d terms, and its deviation grows as √d. "
        "Softmax over large scores gives nearly all the weight to one key, and where a weight is "
        "close to 1 its gradient is close to 0. Divided by √d, scores are alike at every width.",
        (
            Picture(
                "scaling",
                "scaling.why_scaled",
                "Distributions of scores for d of 4, 64 and 1024, which spread without the scale "
                "and coincide with it; below, without the scale, the largest weight rises to "
                "nearly 1 with d and the gradient falls to nearly 0, and both are level with it.",
            ),
        ),
    ),
    Lesson(
        "Three layers, by who sees whom",
        "The word above looks, the words below are looked at. In the encoder every word sees the "
        "whole source (global). In the decoder a word sees itself and what was written before it "
        "(causal), and the whole source across (cross). The grids are the masks: a row for each "
        "word that looks.",
        (
            Picture(
                "layers",
                "roles.who_sees_whom",
                "Cross, global and causal attention as lines between two rows of words, above "
                "grids that are full for cross and global attention and a lower triangle for "
                "causal.",
            ),
        ),
    ),
    Lesson(
        "Causal: what comes later changes nothing before it",
        "One word is replaced, and the outputs are compared. With causal attention the outputs "
        "before it stay as they were, to the last bit; with global attention all change. This is "
        "why a decoder can be trained on all places of a sentence at once, and why what was "
        "computed for earlier words can be kept while it writes.",
        (
            Picture(
                "causal",
                "causality.causal_computing",
                "Bars of how much each output changes when março is replaced: zero before it with "
                "causal attention, not with global; below, the same for every word as grids, a "
                "triangle and a full square.",
            ),
        ),
    ),
    Lesson(
        "Four ways to say where a word stands",
        "Sinusoidal and learned vectors are added to the embeddings, rotary positions turn "
        "queries and keys, and ALiBi lowers scores. Below is what becomes of distance: products "
        "of sinusoidal places fall as the distance grows, and rotary ones likewise, by the same "
        "waves. A learned table knows of no distance before it is trained. ALiBi's slope differs "
        "from head to head.",
        (
            Picture(
                "positions",
                "encodings.positional_encodings",
                "Four columns. Above: the sinusoidal encoding as an image of waves by position "
                "and channel, a learned one as noise, the rotary one as waves, ALiBi's bias as a "
                "ridge on the diagonal. Below: products over distance, and ALiBi's lines for "
                "eight heads.",
            ),
        ),
    ),
    Lesson(
        "Order matters",
        "Attention by itself sees a bag of words: in another order, each word gets the same "
        "output, in another row. With positions, who bites whom makes a difference.",
        (
            Picture(
                "order",
                "order.order_matters",
                "Outputs for dog bites man and man bites dog. Without positions the rows are the "
                "same but for their order, and the differences are zero; with rotary positions "
                "they differ.",
            ),
        ),
    ),
    Lesson(
        "Several heads",
        "Queries, keys and values are split by columns into heads. Each head attends by itself, "
        "with weights of its own; what they find is joined and mixed by one more projection. So "
        "one word can look at several others at once, each for another reason.",
        (
            Picture(
                "heads",
                "heads.split_and_joined",
                "Q, K and V of 5 by 12 in three colours, split into three heads of 5 by 4; "
                "weights of 5 by 5 and sums of values for each head; the sums joined to 5 by 12 "
                "in three colours, and the output.",
            ),
            Picture(
                "two-heads",
                "heads.two_heads",
                "Two heads of one encoder layer over the date, as lines from each token to those "
                "that it looks at; the two patterns differ.",
                ("task", "line"),
            ),
        ),
    ),
    Lesson(
        "A translation, and where it looked",
        "Each row is a word as it was written, each column a word of the source. Where the order "
        "of words differs between the languages, the marks leave the diagonal: day and month "
        "change places between English and Portuguese, and the attention crosses with them.",
        (
            Picture(
                "translation",
                "translated.cross_attention",
                "A heat map of cross-attention, target words down and source words across. The "
                "strongest source word of each row is framed.",
                ("task", "line"),
            ),
        ),
    ),
    Lesson(
        "Writing token by token",
        "The decoder writes one token at a time, and asks the source anew for each. What it has "
        "written is a part of the question.",
        (
            Picture(
                "writing",
                "animation.write_translation",
                "An animation: the translation grows token by token, with lines from the token "
                "that is being written to the source tokens it looks at.",
                ("task", "line", "path"),
            ),
        ),
    ),
    Lesson(
        "The whole model",
        "Encoder and decoder are stacks of N equal layers. A layer of the encoder is global "
        "self-attention and a feed-forward network; one of the decoder has cross-attention "
        "between causal self-attention and that. Every sublayer adds to what it was given. The "
        "diagram is drawn from the model itself.",
        (
            Picture(
                "architecture",
                "diagram.architecture",
                "A diagram of the model: embeddings, the layers of encoder and decoder with their "
                "sublayers, arrows from encoder to cross-attention, and the output.",
                ("model",),
            ),
        ),
    ),
    Lesson(
        "Masks and biases of the zoo",
        "A mask says which keys a query may see; a bias says how much more or less it sees them "
        "by where they stand. These are all that the zoo has, each drawn by the code that "
        "computes it. Where a pattern or a bias depends on content or is learned, it is one draw.",
        (
            Picture(
                "masks",
                "patterns.masks",
                "Thumbnails of mask patterns, queries down and keys across, by family.",
            ),
            Picture(
                "biases",
                "patterns.biases",
                "Thumbnails of score biases, queries down and keys across, by encoding.",
            ),
        ),
    ),
)


def file_name(number: int, picture: Picture) -> str:
    """`08-two-heads.png` of a picture of lesson 8."""
    return f"{number:02}-{picture.name}{picture.suffix}"


def make(picture: Picture, path: Path, task: Any = None) -> Any:
    """The `Figure` of a picture; None of one that is written to the path.

    Args:
        task: a trained `TranslationTask`, for a picture that is of one.
    """
    given = {"task": task, "line": LINE, "path": path}
    if "model" in picture.takes:
        given["model"] = task.model
    module, name = picture.function.split(".")
    function = getattr(import_module(f"{__package__}.{module}"), name)
    return function(*(given[each] for each in picture.takes))


def draw(picture: Picture, path: Path, task: Any = None) -> None:
    """Make a picture as a file, sharp on dense screens, and small."""
    from PIL import Image

    figure = make(picture, path, task)
    if figure is not None:
        sharp = BytesIO()
        figure.savefig(sharp, dpi=150)
        with Image.open(sharp) as image:
            # This method keeps the ends of colour bars, which few pixels have.
            image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path)


def code(number: int, picture: Picture) -> str:
    """The Python that draws a picture, as a reader would write it."""
    module, name = picture.function.split(".")
    lines = [f"from attention_zoo.tasks.views.figures.{module} import {name}"]
    if picture.trained:
        lines += [
            "from attention_zoo.tasks.views.figures.trained import load_translation, newest_translation",
            "",
            "task = load_translation(newest_translation())",
        ]
    file = repr(file_name(number, picture))
    written = {"task": "task", "model": "task.model", "line": repr(LINE), "path": file}
    call = f"{name}({', '.join(written[each] for each in picture.takes)})"
    lines.append(call if "path" in picture.takes else f"{call}.savefig({file})")
    return "\n".join(lines).replace("'", '"')
