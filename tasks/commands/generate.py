"""`attention-zoo generate ckpt_path=FILE "Once"`: the text goes on, token by token."""

from typing import Any

import torch

from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.training.checkpoints import require_task, required
from attention_zoo.tasks.training.task import load_task


def run(config: dict[str, Any], call: Invocation) -> None:
    """Go on from each prompt: of the command line, of `input=FILE`, or of standard input."""
    checkpoint = required(call.checkpoint, call.verb)
    require_task(config, "language_modeling", "translate")
    task = load_task(checkpoint, config).to(torch.get_default_device())
    for prompt in read_lines(call.lines, config["input"]):
        print(prompt, end="", flush=True)
        for piece in task.stream(prompt):
            print(piece, end="", flush=True)
        print()
