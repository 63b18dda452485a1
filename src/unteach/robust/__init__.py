"""`ROBUST`: what makes the forgetting of any method last, by name."""

from __future__ import annotations

from unteach.errors import UserError, did_you_mean
from unteach.robust.distillation import Distillation
from unteach.robust.perturbations import Perturbation, Relearning, Rounding, SharpnessAware
from unteach.robust.wrapper import Wrapper

__all__ = ["ROBUST", "Wrapper", "in_steps", "trains_again", "wrappers"]

NONE = "none"
ROBUST: dict[str, type[Wrapper]] = {
    "sam": SharpnessAware,
    "relearn": Relearning,
    "rounding": Rounding,
    "perturb": Perturbation,
    "distill": Distillation,
}


def wrappers(names: str) -> dict[str, type[Wrapper]]:
    """The wrappers with these names, which `+` joins, by name in the order of `ROBUST`; `none` for
    none.

    Raises:
        UserError: for an unknown name, with the nearest known one, and for one that stands twice.
    """
    wanted = [name.strip() for name in names.split("+")]
    for name in wanted:
        if name not in ROBUST and wanted != [NONE]:
            raise did_you_mean(name, [NONE, *ROBUST], "robust")
        if wanted.count(name) > 1:
            raise UserError(f"option 'robust' is {names!r}, which names {name!r} twice")
    return {name: kind for name, kind in ROBUST.items() if name in wanted}


def in_steps(names: str) -> str:
    """Of these names those that work in each step, not after the last one."""
    return "+".join(name for name, kind in wrappers(names).items() if not kind.after) or NONE


def trains_again(names: str) -> bool:
    """Whether one of these names is a second training after the method's own."""
    return any(kind.after for kind in wrappers(names).values())
