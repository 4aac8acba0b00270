"""Errors that a user can fix. The command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """A request that cannot be met; the message names the rule, the value and the remedy."""


class Unsupported(UserError):
    """A combination that a card does not declare."""


class BadInput(UserError):
    """A file or a text that cannot be used as it is."""


def check_positive(**values: int | None) -> None:
    """Raise UserError for an option that counts something and is no whole number from 1 on."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{name} must be a whole number, at least 1, got {value!r}.")
        if value is None or value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")


def check_dropout(dropout: float) -> None:
    """Raise UserError for a probability of dropout that is not at least 0 and below 1."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, got {dropout!r}.")


class TrainingDiverged(UserError):
    """A training whose loss is no longer finite."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"training diverged: {cause}")
        self.cause = cause
