"""Every query is compared with every key; the scores become weights by another map than softmax."""
