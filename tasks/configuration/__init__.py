"""Compose a config from the command line, and build objects from it."""
