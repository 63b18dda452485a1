"""Texts written for the package: two stories, neutral prompts, opening lines."""

from __future__ import annotations

from importlib.resources import files


def embedded_text(name: str) -> str:
    """One of the texts: `book`, `kept_book`, `neutral_prompts`, `opening_lines`."""
    return (files(__name__) / f"{name}.txt").read_text(encoding="utf-8")


def lines(name: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in embedded_text(name).splitlines() if line.strip()]
