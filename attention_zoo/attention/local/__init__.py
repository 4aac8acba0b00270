"""Queries are compared with the keys near them."""
