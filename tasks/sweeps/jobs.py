"""A job of a sweep: a process of its own, with a record and a log in the folder of its run."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from attention_zoo.errors import TrainingDiverged, Unsupported, UserError
from attention_zoo.tasks.exit_codes import exit_code
from attention_zoo.tasks.interruption import Interrupted
from attention_zoo.tasks.run_folder import JobRecord, Outcome, RunFolder, going_on_without

# The environment variable by which a launcher names the folder of the job to its process.
JOB_FOLDER = "ATTENTION_ZOO_JOB_FOLDER"


@dataclass
class Job:
    """A run of a sweep, and its process."""

    number: int  # its index in the sweep
    overrides: Sequence[str]  # all that its process gets
    name: str  # the user's overrides that not all jobs have
    folder: RunFolder
    record: JobRecord  # the folder gets a copy
    accelerator: str = "cpu"  # that of its Trainer
    devices: int | str = 1  # those of its Trainer
    process: subprocess.Popen[str] = field(init=False, repr=False)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=8), repr=False)

    def restore(self) -> None:
        """Take over the result of an earlier launch, if the folder has one of the same config."""
        earlier = self.folder.read_job()
        if earlier is None:
            return
        if earlier.config_hash != self.record.config_hash:
            if earlier.config_hash is None:
                raise UserError(
                    f"{self.folder.path} does not record its config, as it was written by version "
                    "0.1 or could not be composed, so it cannot be compared with this job. Choose "
                    "another hydra.sweep.dir."
                )
            then, now = earlier.overrides, self.record.overrides
            raise UserError(
                f"{self.folder.path} was composed of something else: it had "
                f"{' '.join(x for x in then if x not in now) or 'the same overrides'}, and now "
                f"{' '.join(x for x in now if x not in then) or 'other values behind them'}. "
                "Repeat the command that began the sweep, or choose another hydra.sweep.dir."
            )
        # What has lost its results, such as by the user's hand, trains again or is scored again.
        if earlier.is_final and (earlier.outcome != "trained" or self.folder.read_results()):
            self.record = earlier

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, live: bool) -> None:
        """Start the process, from its last checkpoint if there is one.

        Its output goes to its log; with `live`, stdout goes to the terminal, and stderr to both.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with going_on_without(self.folder.job_file):
            self.folder.write_job(self.record)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command_line(command),
            # A progress bar needs the terminal itself.
            stdout=None if live else subprocess.PIPE,
            stderr=subprocess.PIPE if live else subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**environment, JOB_FOLDER: str(self.folder.path.absolute())},
            # Ctrl-C then reaches the process only through us, and all its ranks at once.
            start_new_session=True,
        )
        self.log_thread = threading.Thread(target=self.write_log, args=(live,), daemon=True)
        self.log_thread.start()

    def command_line(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs the job in its folder, or resumes it there."""
        # Quoted, since commas and blanks have a meaning in the grammar of overrides.
        run_overrides = ["hydra.mode=RUN", f"hydra.run.dir='{self.folder.path}'"]
        checkpoint = self.folder.last_checkpoint
        if checkpoint.exists():
            run_overrides.append(f"ckpt_path='{checkpoint.absolute()}'")
        else:
            run_overrides.append("overwrite=true")  # what an attempt without a result has left
        return [*command, *self.overrides, *run_overrides]

    def write_log(self, live: bool) -> None:
        """Write the output of the process to the log, and keep its last lines."""
        stream = self.process.stderr if live else self.process.stdout
        assert stream is not None
        is_writable = True
        with stream, self.folder.log_file.open("ab", buffering=0) as log:
            for line in stream:
                # A process whose output nobody reads any more would stop at it.
                if is_writable:
                    is_writable = False
                    with going_on_without(self.folder.log_file):
                        log.write(line.encode())
                        is_writable = True
                if line.strip():
                    self.last_lines.append(line.rstrip())
                if live:
                    sys.stderr.write(line)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all its ranks."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def poll(self) -> bool:
        """Return whether the process has ended; if so, complete the record."""
        code = self.process.poll()
        if code is None:
            return False
        self.send_signal(signal.SIGKILL)  # Other ranks may outlive the first one.
        self.log_thread.join(timeout=5.0)
        self.record = self.folder.read_job() or self.record
        if self.record.code != code:  # It was killed before it could record its end.
            self.record.outcome, self.record.reason = "failed", "its process recorded no reason"
            if code == 0:  # Its disk is full.
                self.record.outcome, self.record.reason = "trained", ""
            if code < 0:
                name = signal.Signals(-code).name
                self.record.outcome, self.record.reason = "killed", f"signal {-code} ({name})"
            self.record.code = code
        self.record.seconds = round(time.monotonic() - self.started, 3)
        with going_on_without(self.folder.job_file):
            self.folder.write_job(self.record)
        return True


@contextmanager
def record_outcome() -> Iterator[None]:
    """Record how the code in the context ends, if this process runs a job of a sweep."""
    try:
        yield
    except (Exception, Interrupted) as error:
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
    if isinstance(error, Interrupted):
        return "failed", f"interrupted ({error})"
    return "failed", traceback.format_exception_only(error)[0].strip()
