"""How a job of a sweep ended, written into its record by its own process."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from attention_zoo.errors import TrainingDiverged, Unsupported, UserError
from attention_zoo.tasks.commands.exit_codes import exit_code
from attention_zoo.tasks.run_folder import Outcome, RunFolder

# The environment variable by which a launcher names the folder of the job to its process.
JOB_FOLDER = "ATTENTION_ZOO_JOB_FOLDER"


@contextmanager
def record_outcome() -> Iterator[None]:
    """Record how the code in the context ends, if this process runs a job of a sweep.

    Only the first rank of a job records.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        folder = os.environ.get(JOB_FOLDER)
        # Of a process that chose its exit code by SystemExit, the launcher has that code.
        if (
            folder
            and os.environ.get("LOCAL_RANK", "0") == "0"
            and not isinstance(error, SystemExit)
        ):
            run = RunFolder(folder)
            if record := run.read_job():
                record.outcome, record.reason = outcome_of_error(error)
                record.code = exit_code(error)
                run.write_job(record)


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
