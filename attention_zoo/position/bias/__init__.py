"""Encodings that add to the scores."""
