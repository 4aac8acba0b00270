"""Hydra configuration groups; a package, so that `pkg://attention_zoo.conf` finds it in a wheel."""
