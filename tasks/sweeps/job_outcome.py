"""How a job of a sweep ended, written into its record by its own process."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attention_zoo.errors import TrainingDiverged, Unsupported, UserError
from attention_zoo.tasks.exit_codes import exit_code
from attention_zoo.tasks.run_folder import JobRecord, Outcome, RunFolder

# The environment variable by which a launcher names the folder of the job to its process.
JOB_FOLDER = "ATTENTION_ZOO_JOB_FOLDER"


@contextmanager
def record_outcome() -> Iterator[None]:
    """Record how the code in the context ends, if this process runs a job of a sweep."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        write_outcome(error)
        raise
    write_outcome(None)


def write_outcome(error: BaseException | None) -> None:
    """Write the end of the job into its record; only its first rank does."""
    path = os.environ.get(JOB_FOLDER)
    if path is None or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    folder = RunFolder(path)
    with suppress(OSError):  # A full disk, for instance, must not hide the error.
        record = folder.read_job() or JobRecord()
        record.outcome, record.reason = outcome_of_error(error)
        record.code = exit_code(error)
        folder.write_job(record)


def outcome_of_error(error: BaseException | None) -> tuple[Outcome, str]:
    """Return how a job ended that raised an error, or none, and why."""
    if error is None:
        return "trained", ""
    if isinstance(error, TrainingDiverged):
        return "diverged", error.cause
    if isinstance(error, UserError):
        return "refused" if isinstance(error, Unsupported) else "failed", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "failed", "interrupted"
    return "failed", traceback.format_exception_only(error)[0].strip()
