"""Errors that a user can fix. The command line prints them as one line, without a traceback."""

from numbers import Integral, Real


class UserError(ValueError):
    """A request that cannot be met; the message names the rule, the value and the remedy."""


class Unsupported(UserError):
    """A combination that a card does not declare."""


class BadInput(UserError):
    """A file or a text that cannot be used as it is."""


def short_repr(value: object) -> str:
    """Return a value for a message of one line: in full, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def check_positive(**values: int | None) -> None:
    """Raise UserError for an option that counts something and is no whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral | None):
            raise UserError(f"{name} must be a whole number, got {short_repr(value)}.")
        if value is None or value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")


def check_not_negative(**values: float) -> None:
    """Raise UserError for an option that starts from 0 and is negative."""
    for name, value in values.items():
        if value < 0:
            raise UserError(f"{name} must be at least 0, got {value}.")


def check_dropout(dropout: float) -> None:
    """Raise UserError for a probability of dropout that is not at least 0 and below 1."""
    if not isinstance(dropout, Real) or not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout must be at least 0 and below 1, got {short_repr(dropout)}.")


class TrainingDiverged(UserError):
    """A training whose loss is no longer finite."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"training diverged: {cause}")
        self.cause = cause
