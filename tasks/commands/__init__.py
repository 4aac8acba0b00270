"""What the command line can do, one file a verb, each with `run`."""
