"""`attention-zoo evaluate ckpt=FILE split=test`: score a checkpoint."""

from functools import partial
from typing import Any

from lightning import Trainer, seed_everything
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.base import load_task
from attention_zoo.tasks.build import instantiate
from attention_zoo.tasks.callbacks.progress import Progress
from attention_zoo.tasks.checkpoints import required
from attention_zoo.tasks.composition import Call
from attention_zoo.tasks.data.tokenizers import given
from attention_zoo.tasks.noise import quiet
from attention_zoo.tasks.results import print_metrics
from attention_zoo.tasks.verbs.train import logged


def run(config: dict[str, Any], call: Call) -> None:
    """Score the checkpoint's weights on a split of its data, or of data chosen now."""
    checkpoint = required(call.checkpoint, call.verb)
    if config["split"] not in ("valid", "test"):
        raise UserError(f"split must be valid or test, got {config['split']!r}.")
    quiet()
    seed_everything(config["seed"], workers=True, verbose=False)
    task = load_task(checkpoint, config)
    task.writes_at_validation = True
    state = checkpoint["attention_zoo"]["tokenizer"]
    data = instantiate(config["data"], tokenizer=partial(given, state=state))
    data.prepare_data()
    data.setup()
    if task.model.max_length is not None:
        data.refuse_longer_than(task.model.max_length)
    trainer: Trainer = instantiate(
        config["trainer"], logger=False, callbacks=[Progress()], enable_checkpointing=False
    )
    score = trainer.test if config["split"] == "test" else trainer.validate
    score(task, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        prefix = "test/" if config["split"] == "test" else "val/"
        print_metrics(Console(), logged(trainer, prefix))
