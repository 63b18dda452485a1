"""unteach: make a language model stop saying what it must not say, and show that it worked."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["UnlearningConfig", "UnlearningTrainer", "unlearn"]


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only when one of the public names is used, so that `unteach
    --help` is instant.
    """
    rooms = {
        "UnlearningConfig": "config",
        "UnlearningTrainer": "trainer",
        "unlearn": "run.pipeline",
    }
    if name not in rooms:
        raise AttributeError(f"module 'unteach' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"unteach.{rooms[name]}"), name)
