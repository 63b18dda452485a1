"""The command line."""

from unteach.cli.main import main

__all__ = ["main"]
