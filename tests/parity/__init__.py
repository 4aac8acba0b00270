"""Ours and theirs: the same weights give the same numbers."""
