"""`attention-zoo figures`: draw the pictures that explain attention, and a page of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.run_folder import refuse_unwritable

if TYPE_CHECKING:
    from attention_zoo.tasks.views.figures.gallery import Picture

OPTIONS = {
    "ckpt_path=FILE": "A trained translation. Without it, the newest one in logs is drawn.",
    "output=figures": "The folder for the pictures and their page.",
}
NO_MODEL = "it needs a trained translation; train one with make demo, or name one: ckpt_path=FILE."


def run(arguments: list[str]) -> None:
    """Draw all pictures into a folder, and write its `index.html`."""
    options, _ = parse_arguments("figures", arguments, OPTIONS)

    from attention_zoo.tasks.views.figures import trained_task
    from attention_zoo.tasks.views.figures.gallery import index_page

    task = None
    try:
        path = Path(options.get("ckpt_path") or trained_task.find_newest_translation())
    except UserError as error:
        source = f"No trained model is drawn: {error}"
    else:
        task = trained_task.load_translation(path)
        source = f"The trained model is {path}."
    print(source)
    folder = Path(options.get("output", "figures"))
    with refuse_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        missing = save_pictures(folder, task)
        (folder / "index.html").write_text(index_page(source, missing), encoding="utf-8")
    print(folder / "index.html")


def save_pictures(folder: Path, task: Any) -> "dict[Picture, str]":
    """Save every picture, and print a line for each; return why some cannot be drawn."""
    from attention_zoo.tasks.views.figures.gallery import LESSONS, file_name, save_picture

    missing: dict[Picture, str] = {}
    for number, lesson in enumerate(LESSONS, start=1):
        for picture in lesson.pictures:
            path = folder / file_name(number, picture)
            try:
                if picture.needs_model and task is None:
                    raise UserError(NO_MODEL)
                save_picture(picture, path, task)
                print(path, flush=True)
            except UserError as error:
                missing[picture] = str(error)
                print(f"{path} is not drawn: {error}", flush=True)
    return missing
