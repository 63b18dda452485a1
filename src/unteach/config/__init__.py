"""The settings of a run and of its training."""

from typing import Any

__all__ = ["UnlearningConfig"]


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only when `UnlearningConfig` is used."""
    if name not in __all__:
        raise AttributeError(f"module 'unteach.config' has no attribute {name!r}")
    from unteach.config.unlearning import UnlearningConfig

    return UnlearningConfig
