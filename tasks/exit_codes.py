"""Exit codes of the program."""

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.interruption import Interrupted

FAILED = 2  # something that the user can mend
REFUSED = 3  # a combination that cannot be
PIPE_CLOSED = 141  # by the reader of the output; 128 + SIGPIPE, as in shells


def exit_code(error: BaseException | None) -> int:
    """Return the exit code of a command that ended with an error, or without one.

    That of a signal is 128 + its number, as in shells: 130 for SIGINT, 143 for SIGTERM.
    """
    if error is None:
        return 0
    if isinstance(error, UserError):
        return REFUSED if isinstance(error, Unsupported) else FAILED
    return 128 + error.signal if isinstance(error, Interrupted) else 1  # 1 is Python's own.
