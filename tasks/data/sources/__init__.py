"""Sources of text, one file for each kind."""
