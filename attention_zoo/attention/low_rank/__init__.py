"""Mechanisms that compare queries with a few combinations of the keys."""
