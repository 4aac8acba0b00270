"""When callbacks act."""

from lightning.pytorch import Trainer


def is_fit_validation(trainer: Trainer) -> bool:
    """Return whether a validation is part of a training, and not its sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def is_log_step(trainer: Trainer, step: int) -> bool:
    """Return whether metrics of a step are logged; none are with `log_every_n_steps=0`."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
    return every > 0 and step % every == 0
