"""Atomic writes, checkpoints with checksums, locked folders."""
