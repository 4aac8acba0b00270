"""Errors that a user can mend. The command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """Something asked for cannot be done; the message says the rule, the value, the remedy."""


class Unsupported(UserError):
    """A combination that a card does not declare."""


class BadInput(UserError):
    """A file or a text that cannot be used as it is."""


class TrainingDiverged(UserError):
    """A training whose loss is no longer finite."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"training diverged: {cause}")
        self.cause = cause
