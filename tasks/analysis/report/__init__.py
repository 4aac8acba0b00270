"""Compare runs and sweeps by what their folders hold, without torch."""
