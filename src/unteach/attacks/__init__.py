"""Attacks that try to recover forgotten content."""
