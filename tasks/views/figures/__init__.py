"""Pictures that explain attention."""
