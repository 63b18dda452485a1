"""What a model says, and numbers about it."""
