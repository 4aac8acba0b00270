"""`attention-zoo benchmark`: what models cost, by the length of their sequences."""
