"""Compare the configs of a run's processes, and gather their outputs."""

import os
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.resolved_config import hash_config
from attention_zoo.tasks.run_folder import RunFolder

# Paths differ from rank to rank without changing the training.
LOCAL_OPTIONS = ("paths", "logger", "callbacks")


def is_first_rank() -> bool:
    """Return whether this process is the first of its run, before a Trainer has joined them."""
    # Lightning, torchrun and SLURM number processes, and the first two also machines.
    is_first: bool = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return is_first and os.environ.get("NODE_RANK", "0") == "0"


def require_equal_ranks(trainer: Trainer, config: dict[str, Any]) -> None:
    """Raise UserError on every rank if ranks are missing, or have composed different configs.

    All ranks are started with the same command line, which need not mean the same twice: a value
    may be drawn while composing, or a launcher may pass on only some of the overrides.
    """
    options = config.get("trainer", {})
    expected = options.get("devices", 1)
    if isinstance(expected, int) and expected > 0:
        expected *= options.get("num_nodes", 1)
        if trainer.world_size != expected:
            raise UserError(
                f"trainer.devices asks for {expected} processes, and {trainer.world_size} have "
                "met. Start the run again, and let only the program itself start processes."
            )
    if trainer.world_size == 1:
        return
    own_hash = hash_config(config, without=LOCAL_OPTIONS)
    strategy = trainer.strategy
    first_hash = strategy.broadcast(own_hash, src=0)
    differs = torch.tensor(float(own_hash != first_hash), device=strategy.root_device)
    count = int(strategy.reduce(differs, reduce_op="sum"))
    if count:
        raise UserError(
            f"{count} of {trainer.world_size} processes composed another config than the first: "
            f"whose hash is {first_hash[:12]}. Give a run on several devices values, not draws."
        )


def resolve_elastic_start(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a worker that torchrun starts, with the checkpoint of the run's folder.

    A worker that torchrun restarts has the command line of the first start. So `ckpt_path=last`
    begins a training of which the folder has no checkpoint yet, and goes on with it afterwards.
    """
    if config["ckpt_path"] != "last" or not torch.distributed.is_torchelastic_launched():
        return config
    path = RunFolder(config["paths"]["run"]).last_checkpoint
    return {**config, "ckpt_path": str(path) if path.exists() else None}


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """Return the values of all ranks, on every rank."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def gather_outputs(trainer: Trainer, outputs: dict[int, str]) -> dict[int, str]:
    """Return the outputs of all ranks, on every rank."""
    parts = gather(trainer, outputs)
    return {index: output for part in parts for index, output in part.items()}
