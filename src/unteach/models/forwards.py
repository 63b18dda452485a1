"""Another forward in the place of a module's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def with_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """`module` with that `forward` of its own (`None`: its class's); afterwards with what stood
    there before, whatever was put there since.

    Mixed precision, for one, puts a forward with autocast in its place and leaves it there after
    training.
    """
    before = vars(module).get("forward")
    set_forward(module, forward)
    try:
        yield
    finally:
        set_forward(module, before)


def set_forward(module: nn.Module, forward: Any) -> None:
    """Gives `module` that `forward` of its own; `None`: its class's."""
    if forward is None:
        vars(module).pop("forward", None)
    else:
        module.forward = forward
