"""What runs and sweeps came to, compared: out of their folders, without torch."""
