"""The attention mechanisms, one file each, by family."""
