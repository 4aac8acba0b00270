"""Mechanisms whose queries see a fixed pattern of keys, most of them near."""
