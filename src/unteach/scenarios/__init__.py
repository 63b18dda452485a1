"""The uses of unlearning: which data, what is taught first, which prompt sets."""
