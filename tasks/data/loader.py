"""The data loader of all splits, which a checkpoint can resume within an epoch."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.samplers import EpochSampler


class ResumableLoader(DataLoader[Any]):
    """A loader that can resume within an epoch: Lightning stores its state in the checkpoint.

    The state counts the batches that the trainer received, not those that workers prepared ahead.
    It is valid for the same world size only.
    """

    sampler: EpochSampler

    def __init__(
        self, dataset: Dataset[Any], sampler: EpochSampler, *, num_workers: int = 0
    ) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # Forking a process that has computed with several threads can deadlock.
            multiprocessing_context="spawn" if num_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
        )
        self.yielded_batches = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.yielded_batches = self.sampler.skip_batches
        # torch draws a seed for workers from the random state that dropout has: at every pass, but
        # persistent workers at their first pass only. Every pass shall move the state alike, and a
        # resumed pass not at all, as it has done so before.
        with torch.random.fork_rng(devices=[]):
            batches = super().__iter__()
        if self.yielded_batches == 0:
            torch.empty((), dtype=torch.int64).random_()
        for batch in batches:
            self.yielded_batches += 1
            idle = self.sampler.is_idle(self.yielded_batches)
            yield batch.without_targets() if idle else batch

    def order_hash(self) -> str:
        """Return a sha256 that is equal where the same batches come in the same order.

        It covers the seed, the class of the sampler, the batches of indices of the first epoch, and
        the tokens of its first batch. Every order is a function of seed and epoch alone. The number
        of ranks has an influence only if the last batches are halved for them.
        """
        sampler = self.sampler
        digest = hashlib.sha256(f"{type(sampler).__name__} {sampler.seed}".encode())
        batches = sampler.epoch_batches(epoch=0)
        for batch in batches:
            digest.update(len(batch).to_bytes(8) + batch.astype("<i8").tobytes())
        for part in self.dataset[batches[0].tolist()]:
            if part is not None:
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches yielded, and the world size it was counted in."""
        return {"yielded_batches": self.yielded_batches, "world_size": self.sampler.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches that were yielded when the state was saved."""
        if state["world_size"] != self.sampler.world_size:
            raise UserError(
                f"the checkpoint lies in the middle of an epoch of {state['world_size']} processes,"
                f" got {self.sampler.world_size}; resume with as many, or from the end of an epoch."
            )
        # Version 0.1 saved the number as "given".
        yielded = state["yielded_batches"] if "yielded_batches" in state else state["given"]
        # The number is saved again before the first batch if a run goes on with a validation.
        self.yielded_batches = self.sampler.skip_batches = yielded % len(self.sampler)
