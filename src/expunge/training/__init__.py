"""Training: the loop, its settings and targets, and published methods as step functions on it."""
