"""`attention-zoo attend`: write a page that shows what attends to what."""

from pathlib import Path
from typing import Any

import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.input_checks import check_lines
from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.run_folder import refuse_unwritable
from attention_zoo.tasks.task_spec import task_spec
from attention_zoo.tasks.training.task import load_task
from attention_zoo.tasks.views.attention_viewer.page import attention_page


def run(config: dict[str, Any], invocation: Invocation) -> None:
    """Write a page for the lines of the command line, of `input=FILE`, or of standard input.

    Prints the translation of each line, and the path of the page. Of a language model the page
    shows the attention while it reads the text, which it does not continue.
    """
    checkpoint = invocation.require_checkpoint()
    output = Path(str(config["output"]))
    if output.suffix != ".html":
        raise UserError(f"output must be an HTML file, such as attention.html, got {output}.")
    check_decoding(config, invocation)
    task = load_task(checkpoint, config).to(torch.get_default_device())
    records = []
    lines = check_lines(read_lines(invocation.lines, config["input"]), task)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"attend needs text, got line {number} without any; leave it out.")
        records.append(task.attend(line))
        if task_spec(config).is_encoder_decoder:
            print(records[-1].target, flush=True)
    with refuse_unwritable(output, "FILE"):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(attention_page(records), encoding="utf-8")
    print(f"What attends to what: {output} ({output.stat().st_size / 1000:,.0f} kB)")


def check_decoding(config: dict[str, Any], invocation: Invocation) -> None:
    """Refuse options of decoding that would have no effect."""
    options = [x for x in invocation.overrides if x.lstrip("+~").startswith("decoding")]
    if options and not task_spec(config).is_encoder_decoder:
        raise UserError(
            f"attend shows a language model as it reads the text, got {options[0]}, which is about "
            "writing: let attention-zoo generate write, and give its text to attend."
        )
    if config["decoding"].get("n_best", 1) != 1:
        raise UserError(
            "attend shows what the best translation attends to, got decoding.n_best="
            f"{config['decoding']['n_best']}; give decoding.n_best=1."
        )
