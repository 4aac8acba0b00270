"""`attention-zoo figures ckpt_path=FILE output=FOLDER`: pictures that explain attention, and a page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_zoo.errors import UserError
from attention_zoo.zoo import unknown_name_message

if TYPE_CHECKING:
    from attention_zoo.tasks.views.figures.gallery import Picture

OPTIONS = ("ckpt_path", "output")
UNTRAINED = "it is of a trained translation; make demo trains one, ckpt_path=FILE names one."


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="attention-zoo figures", description=__doc__)
    parser.add_argument(
        "options",
        nargs="*",
        metavar="ckpt_path=FILE output=FOLDER",
        help="a trained translation, by default the newest under logs; by default output=figures",
    )
    options = read_options(parser.parse_args(arguments).options)

    from attention_zoo.tasks.views.figures.page import index_page
    from attention_zoo.tasks.views.figures.trained import load_translation, newest_translation

    task = None
    try:
        checkpoint = Path(options["ckpt_path"]) if "ckpt_path" in options else newest_translation()
    except UserError as lack:
        about = f"No trained model is drawn: {lack}"
    else:
        task = load_translation(checkpoint)
        about = f"The trained model is {checkpoint}."
    print(about)
    folder = Path(options.get("output", "figures"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = draw_all(folder, task)
        (folder / "index.html").write_text(index_page(about, missing), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); name another: output=FOLDER."
        ) from error
    print(folder / "index.html")


def draw_all(folder: Path, task: Any) -> "dict[Picture, str]":
    """Draw every picture that can be, and print a line for each; return why the others cannot."""
    from attention_zoo.tasks.views.figures.gallery import LESSONS, draw, file_name

    missing: dict[Picture, str] = {}
    for number, lesson in enumerate(LESSONS, start=1):
        for picture in lesson.pictures:
            path = folder / file_name(number, picture)
            try:
                if picture.trained and task is None:
                    raise UserError(UNTRAINED)
                draw(picture, path, task)
                print(path, flush=True)
            except UserError as error:
                missing[picture] = str(error)
                print(f"{path} is not drawn: {error}", flush=True)
    return missing


def read_options(given: list[str]) -> dict[str, str]:
    """What was given as name=value.

    Raises:
        UserError: no option of ours, one given twice, or without a value.
    """
    options: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if name not in OPTIONS or not equals:
            raise UserError(unknown_name_message("option", name if equals else each, list(OPTIONS)))
        if not value or name in options:
            raise UserError(f"{name} takes one value, {name}=…; got {' '.join(given)}.")
        options[name] = value
    return options
