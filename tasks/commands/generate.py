"""`attention-zoo generate`: continue prompts, token by token."""

from typing import Any

import torch

from attention_zoo.tasks.commands.input_checks import check_lines
from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.task_spec import LANGUAGE_MODELING
from attention_zoo.tasks.training.checkpoints import require_task
from attention_zoo.tasks.training.task import load_task


def run(config: dict[str, Any], invocation: Invocation) -> None:
    """Continue each prompt: of the command line, of `input=FILE`, or of standard input."""
    checkpoint = invocation.require_checkpoint()
    require_task(config, LANGUAGE_MODELING)
    task = load_task(checkpoint, config).to(torch.get_default_device())
    for prompt in check_lines(read_lines(invocation.lines, config["input"]), task):
        print(prompt, end="", flush=True)
        for piece in task.stream(prompt):
            print(piece, end="", flush=True)
        print()
