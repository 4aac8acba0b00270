"""Mechanisms whose queries choose the keys, or blocks of keys, that they attend to."""
