"""Mechanisms that mix tokens without comparing them: controls for all others."""
