"""The losses of unlearning as pure functions of per-token statistics."""
