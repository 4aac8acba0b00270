"""`attention-zoo translate`: translate lines to standard output."""

from typing import Any

import torch

from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.task_spec import TRANSLATION
from attention_zoo.tasks.training.checkpoints import require_task
from attention_zoo.tasks.training.task import load_task

BATCH_SIZE = 64  # lines


def run(config: dict[str, Any], invocation: Invocation) -> None:
    """Translate the lines of the command line, of `input=FILE`, or of standard input.

    Prints a line for each. With `decoding.n_best` above 1 it prints that many lines of score and
    translation, and an empty line after them.
    """
    checkpoint = invocation.require_checkpoint()
    require_task(config, TRANSLATION)
    task = load_task(checkpoint, config).to(torch.get_default_device())
    lines = list(read_lines(invocation.lines, config["input"]))
    n_best = config["decoding"].get("n_best", 1)
    for start in range(0, len(lines), BATCH_SIZE):
        for hypotheses in task.hypotheses(lines[start : start + BATCH_SIZE]):
            if n_best == 1:
                print(hypotheses[0][0], flush=True)
                continue
            for text, score in hypotheses:
                print(f"{score:.3f}\t{text}")
            print(flush=True)
