"""What the processes of a run do together: whether they do the same, and what each has."""

from typing import Any

import torch
from lightning import Trainer

from attention_zoo.errors import UserError
from attention_zoo.tasks.training.results import fingerprint

# Where things are written differs from rank to rank, and means nothing.
LOCAL = ("paths", "logger", "callbacks")


def require_equal_ranks(trainer: Trainer, config: dict[str, Any]) -> None:
    """Raises: UserError on every rank, if one has composed another config, or if some are missing.

    Ranks are started by the same command line, which need not mean the same thing twice: a value
    may be drawn while composing, or a launcher hand on only some of the overrides.
    """
    options = config.get("trainer", {})
    wanted = options.get("devices", 1)
    if isinstance(wanted, int) and wanted > 0:
        wanted *= options.get("num_nodes", 1)
        if trainer.world_size != wanted:
            raise UserError(
                f"trainer.devices asks for {wanted} processes, and {trainer.world_size} have met. "
                "Start the run anew, with nothing but the program itself starting processes."
            )
    if trainer.world_size == 1:
        return
    ours = fingerprint(config, without=LOCAL)
    strategy = trainer.strategy
    first = strategy.broadcast(ours, src=0)
    differ = torch.tensor(float(ours != first), device=strategy.root_device)
    count = int(strategy.reduce(differ, reduce_op="sum"))
    if count:
        raise UserError(
            f"{count} of {trainer.world_size} processes composed another config than the first: "
            f"{ours[:12]} and {first[:12]} by their hashes here. Give values, not draws, to a run "
            "on several devices."
        )


def gathered(trainer: Trainer, part: dict[int, str]) -> dict[int, str]:
    """The parts of all ranks as one, on every rank."""
    if trainer.world_size == 1:
        return part
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, part)
    return {key: value for each in parts for key, value in each.items()}
