"""Diagnostics: synthetic sequences with queries, one file for each kind."""
