"""Every query is compared with every key."""
