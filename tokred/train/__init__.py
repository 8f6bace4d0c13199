"""Training: one loop, one task a file."""
