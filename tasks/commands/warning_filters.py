"""Messages of libraries that tell a user of this program nothing, silenced one by one."""

import logging
import warnings


def quiet() -> None:
    """Silence them. Whatever a user could act on still shows."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        # Below it: which devices there are, that a limit set by the user was reached, and tips.
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch's pytree
        r".*does not have many workers which may be a bottleneck.*",  # it is none for text
        # The interval counts steps of the run, in which an epoch may have few.
        r".*The number of training batches .* is smaller than the logging interval.*",
        # On a cluster it starts its processes itself, where each job of SLURM's has one task.
        r".*The `srun` command is available on your system but is not used.*",
        r".*The dirpath has changed from .*",  # a resumed run has a folder, and a best, of its own
        r".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run is resumed
    ):
        warnings.filterwarnings("ignore", message=message)
