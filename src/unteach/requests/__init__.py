"""Forget requests over time: their ledger, their rows, their adapters as patches."""
