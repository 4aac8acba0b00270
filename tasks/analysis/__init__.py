"""Count what models cost, and compare runs."""
