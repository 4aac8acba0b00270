"""One run: the tasks, what optimises them, what measures them, and what a run leaves behind."""
