"""Training: the tasks, optimisers, schedules, metrics, checkpoints, callbacks and loggers."""
