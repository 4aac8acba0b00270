"""`attention-zoo translate ckpt_path=FILE "A sentence."`: translations of lines, on standard output."""

from typing import Any

import torch

from attention_zoo.tasks.commands.text_input import read_lines
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.training.checkpoints import require_task, required
from attention_zoo.tasks.training.task import load_task

BATCH = 64  # lines translated at once


def run(config: dict[str, Any], call: Invocation) -> None:
    """Translate the lines of the command line, of `input=FILE`, or of standard input.

    Prints a line for each. With `decoding.n_best` above 1, that many lines of score and
    translation, and an empty one between.
    """
    checkpoint = required(call.checkpoint, call.verb)
    require_task(config, "translation", "generate")
    task = load_task(checkpoint, config).to(torch.get_default_device())
    lines = read_lines(call.lines, config["input"])
    n_best = config["decoding"].get("n_best", 1)
    for start in range(0, len(lines), BATCH):
        for hypotheses in task.hypotheses(lines[start : start + BATCH]):
            if n_best == 1:
                print(hypotheses[0][0], flush=True)
                continue
            for text, score in hypotheses:
                print(f"{score:.3f}\t{text}")
            print(flush=True)
