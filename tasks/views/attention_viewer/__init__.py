"""A page in which pointing at a token shows what it attends to."""
