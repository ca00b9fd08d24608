"""Reports on a trained detector: which examples pulled at it and what it gets wrong, in figures and in words."""
