"""`attention-zoo figures`: draw the pictures that explain attention, and a page of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.arguments import parse_arguments

if TYPE_CHECKING:
    from attention_zoo.tasks.views.figures.gallery import Picture

OPTIONS = {
    "ckpt_path=FILE": "A trained translation. Without it, the newest one in logs is drawn.",
    "output=figures": "The folder for the pictures and their page.",
}
UNTRAINED = "it is of a trained translation; make demo trains one, ckpt_path=FILE names one."


def run(arguments: list[str]) -> None:
    """Draw the pictures."""
    options, _ = parse_arguments("figures", arguments, OPTIONS)

    from attention_zoo.tasks.views.figures.page import index
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
        (folder / "index.html").write_text(index(about, missing), encoding="utf-8")
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
