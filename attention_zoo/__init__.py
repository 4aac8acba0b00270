"""Interchangeable attention mechanisms and positional encodings behind one contract."""
