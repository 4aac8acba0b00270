"""Silence messages of libraries that a user of this program can do nothing about."""

import logging
import warnings


def silence_libraries() -> None:
    """Ignore such messages one by one. All others still show."""
    # On a full disk, each line for the log file would print a traceback.
    logging.raiseExceptions = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        # Below warnings there are devices, tips, and limits that the user has set.
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning itself uses torch's pytree so.
        r".*does not have many workers which may be a bottleneck.*",  # For text it is none.
        # The interval counts steps of the run, and an epoch may have few of them.
        r".*The number of training batches .* is smaller than the logging interval.*",
        # On a cluster each job has one task of SLURM, and starts its processes itself.
        r".*The `srun` command is available on your system but is not used.*",
        r".*The dirpath has changed from .*",  # A resumed run has a folder of its own.
        r".*Checkpoint directory .* exists and is not empty.*",  # As when a run is resumed.
    ):
        warnings.filterwarnings("ignore", message=message)
