"""`attention-zoo translate`: translate lines to standard output."""

import sys
from itertools import islice
from typing import Any

import torch

from attention_zoo.tasks.commands.input_checks import check_lines
from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.task_spec import TRANSLATION
from attention_zoo.tasks.training.checkpoints import require_task
from attention_zoo.tasks.training.task import load_task

# Lines that are sorted by length, and translated, before any of them is printed. The first ones are
# few, so that something is seen soon.
FIRST_LINES, LINES = 64, 1024


def run(config: dict[str, Any], invocation: Invocation) -> None:
    """Translate the lines of the command line, of `input=FILE`, or of standard input.

    Prints a line for each. With `decoding.n_best` above 1 it prints that many lines of score and
    translation, and an empty line after them. A line without text has an empty translation. Lines
    are read as they are needed, so that there may be any number of them.
    """
    checkpoint = invocation.require_checkpoint()
    require_task(config, TRANSLATION)
    task = load_task(checkpoint, config).to(torch.get_default_device())
    lines = check_lines(read_lines(invocation.lines, config["input"]), task)
    n_best = config["decoding"].get("n_best", 1)
    count = FIRST_LINES
    while batch := list(islice(lines, count)):
        count = LINES
        for hypotheses in task.hypotheses(batch):
            if n_best == 1:
                print(hypotheses[0][0])
                continue
            for text, score in hypotheses:
                print(f"{score:.3f}\t{text}")
            print()
        sys.stdout.flush()
