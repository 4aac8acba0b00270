"""Encodings that read queries and keys."""
