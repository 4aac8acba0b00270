"""`attention-zoo attend ckpt_path=FILE "A sentence."`: a page in which one sees what attends to what."""

from pathlib import Path
from typing import Any

import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.training.checkpoints import required
from attention_zoo.tasks.training.task import load_task
from attention_zoo.tasks.views.attention_viewer.page import attention_page


def run(config: dict[str, Any], call: Invocation) -> None:
    """Write a page of the lines of the command line, of `input=FILE`, or of standard input.

    Prints the translation of each line, and where the page is. A language model is looked at while
    it reads the text: it does not go on from there.

    Raises:
        UserError: `into` is no HTML file, or decoding is asked for what is not shown.
    """
    checkpoint = required(call.checkpoint, call.verb)
    into = Path(str(config["output"]))
    if into.suffix != ".html":
        raise UserError(f"into must be an HTML file, such as attention.html, got {into}.")
    check_decoding(config, call)
    task = load_task(checkpoint, config).to(torch.get_default_device())
    readings = []
    for line in read_lines(call.lines, config["input"]):
        readings.append(task.attend(line))
        if config["task"]["name"] == "translation":
            print(readings[-1].target, flush=True)
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        into.write_text(attention_page(readings), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{into} cannot be written: {error.strerror}.") from None
    print(f"What attends to what: {into} ({into.stat().st_size / 1000:,.0f} kB)")


def check_decoding(config: dict[str, Any], call: Invocation) -> None:
    """Raises: UserError, for options of decoding that nothing would come of."""
    given = [x for x in call.overrides if x.lstrip("+~").startswith("decoding")]
    if given and config["task"]["name"] == "language_modeling":
        raise UserError(
            f"attend shows a language model as it reads the text, got {given[0]}, which is about "
            "writing: let attention-zoo generate write, and give its text to attend."
        )
    if config["decoding"].get("n_best", 1) != 1:
        raise UserError(
            "attend shows what the best translation attends to, got decoding.n_best="
            f"{config['decoding']['n_best']}; give decoding.n_best=1."
        )
