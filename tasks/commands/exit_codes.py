"""Exit codes of the program, beside 0 and Python's own 1 for a crash."""

FAILED = 2  # something that the user can mend
REFUSED = 3  # a combination that cannot be
INTERRUPTED = 130  # by Ctrl-C; 128 + SIGINT, as shells have it
