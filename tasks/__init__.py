"""The Lightning side of the zoo: tasks, data, callbacks and the command line's verbs."""
