"""Exit codes of the program."""

from attention_zoo.errors import Unsupported, UserError

FAILED = 2  # something that the user can mend
REFUSED = 3  # a combination that cannot be
INTERRUPTED = 130  # by Ctrl-C; 128 + SIGINT, as in shells
PIPE_CLOSED = 141  # by the reader of the output; 128 + SIGPIPE, as in shells


def exit_code(error: BaseException | None) -> int:
    """Return the exit code of a command that ended with an error, or without one."""
    if error is None:
        return 0
    if isinstance(error, UserError):
        return REFUSED if isinstance(error, Unsupported) else FAILED
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1  # 1 is Python's own.
