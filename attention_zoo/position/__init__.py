"""The positional encodings, one file each, by where they act."""
