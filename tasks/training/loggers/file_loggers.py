"""Loggers that write files, on a disk that may be full."""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakSet

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

FAILED: WeakSet[Logger] = WeakSet()  # Loggers of which a warning has said so.


class WholeRowsWriter(ExperimentWriter):
    """Write a CSV file whose rows are whole; rows that cannot be written wait for the next time."""

    def save(self) -> None:
        path, keys = Path(self.metrics_file_path), [*self.metrics_keys]
        try:
            if self.metrics and self._record_new_keys() and path.exists():
                self._rewrite_with_new_header(self.metrics_keys)
        except OSError:
            self.metrics_keys = keys
            raise
        size = path.stat().st_size if path.exists() else None
        try:
            super().save()
        except OSError:
            if size is None:
                path.unlink(missing_ok=True)
            else:
                os.truncate(path, size)
            raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        draft = path.with_name(f".{path.name}.draft")
        try:
            shutil.copyfile(path, draft)
            self.metrics_file_path = os.fspath(draft)
            super()._rewrite_with_new_header(fieldnames)
            os.replace(draft, path)
        finally:
            self.metrics_file_path = os.fspath(path)
            draft.unlink(missing_ok=True)


def survive_full_disk(logger: CSVLogger | TensorBoardLogger) -> None:
    """Let what a logger cannot write cost its lines, and not the run."""
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if isinstance(logger, CSVLogger) and is_first and logger._experiment is None:
        logger._experiment = WholeRowsWriter(logger.log_dir)
    if isinstance(logger, TensorBoardLogger):
        threading.excepthook = partial(_skip_writer_thread, threading.excepthook)
    for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
        setattr(logger, name, tolerate_write_errors(logger)(getattr(logger, name)))


def _skip_writer_thread(
    hook: Callable[[threading.ExceptHookArgs], object], arguments: threading.ExceptHookArgs
) -> None:
    # TensorBoard's thread hands its error on to whoever logs next, and prints a traceback too.
    of_tensorboard = type(arguments.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(arguments.exc_value, OSError)):
        hook(arguments)


@contextmanager
def tolerate_write_errors(logger: CSVLogger | TensorBoardLogger) -> Iterator[None]:
    """Warn once that a logger cannot write, and go on."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Lightning makes a ValueError of what TensorBoard's writer raises.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if logger not in FAILED:
            FAILED.add(logger)
            log.warning(
                "%s: not all is logged there: %s. The run goes on.",
                logger.log_dir,
                cause.strerror or cause,
            )
