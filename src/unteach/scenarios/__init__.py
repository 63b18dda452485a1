"""The uses of unlearning as data: what is taught, forgotten, kept and asked, and who scores it."""
