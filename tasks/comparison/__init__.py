"""`attention-zoo compare`: tune every candidate alike, confirm with new seeds, and answer."""
