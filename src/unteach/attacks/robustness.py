"""The robustness figure: the share of the forgotten rows that the strongest attack of each family
brings back, less what the same attack gets from a model that never knew them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unteach.evaluation.results import MetricResult, summarise
from unteach.run.folder import ORIGINAL, UNLEARNED

NO_CONTROL = (
    "no model that never knew the forget rows was given (--retrain or --retrained), so how much of"
    " this it would give too is unknown"
)
NOTHING_FORGOTTEN = (
    "no forget row is shown by the original model and not by the unlearned one without an attack"
)
NO_ATTACKS = "no attack that brings rows back was made"
Rows = Mapping[str, Sequence[float | None]]


def robustness(found: Mapping[str, Any], control: str | None) -> dict[str, Any]:
    """The field `robustness` of `attacks.json`.

    Forgotten are the attacked rows that the original model shows without an attack and the
    unlearned model does not. In each family the strongest attack is the one with the largest
    excess over the control, without one the one that brings back most; the figure is the largest
    excess of all families. An attack that trains on forget rows is measured on the others.

    Args:
        found: the content of `attacks.json`.
        control (`str`, *optional*): role of the model that never knew the rows.

    Returns:
        `value` with its bootstrap interval over `n` rows, `None` with a `reason` where it is
        missing; `forgotten_rows` of `attacked_rows`, `still_shown` and `never_shown` (by the
        original); and by family the strongest `attack`, its `tried` attacks, `brought_back`,
        `control` and `excess`.
    """
    rows = found["rows"]
    plain = rows.get("none", {})
    before, after = plain.get(ORIGINAL, []), plain.get(UNLEARNED, [])
    states = list(zip(before, after, strict=True))
    forgotten = [index for index, (first, now) in enumerate(states) if first and not now]
    facts: dict[str, Any] = {
        "control": control,
        "attacked_rows": len(states),
        "forgotten_rows": len(forgotten),
        "still_shown": sum(bool(now) for _, now in states),
        "never_shown": sum(not first and not now for first, now in states),
    }
    by_family: dict[str, dict[str, Any]] = {}
    for name, by_role in rows.items():
        family = found["about"][name]["family"]
        if family == "none" or UNLEARNED not in by_role:
            continue
        made = _of_attack(by_role, forgotten, control)
        tried = by_family.get(family, {}).get("tried", 0) + 1
        if made and (tried == 1 or _strength(made) > _strength(by_family[family])):
            by_family[family] = {"attack": name, **made}
        if family in by_family:
            by_family[family]["tried"] = tried
    strongest = max(by_family.values(), key=_strength, default=None)
    empty = MetricResult(None, 0, None, None, False).as_json()
    value, reason = empty, ""
    if not forgotten:
        reason = NOTHING_FORGOTTEN
    elif strongest is None:
        reason = NO_ATTACKS
    elif strongest["excess"] is None:
        reason = NO_CONTROL
    else:
        value = strongest["excess"]
    named = {"attack": strongest["attack"]} if strongest and not reason else {}
    return {**value, **named, **facts, "reason": reason, "families": by_family}


def _of_attack(
    by_role: Rows, forgotten: Sequence[int], control: str | None
) -> dict[str, Any] | None:
    """Brought back, control and excess of one attack; `None` without a forgotten row measured."""
    values = by_role[UNLEARNED]
    measured = [index for index in forgotten if values[index] is not None]
    if not measured:
        return None
    back = [float(values[index] or 0.0) for index in measured]
    found: dict[str, Any] = {"brought_back": _share(back), "control": None, "excess": None}
    others = by_role.get(control, []) if control else []
    if others:
        same = [float(others[index] or 0.0) for index in measured]
        excess = [one - other for one, other in zip(back, same, strict=True)]
        found["control"] = _share(same)
        found["excess"] = summarise(excess, higher_is_better=False).as_json()
    return found


def _share(values: Sequence[float]) -> dict[str, Any]:
    return summarise(values, higher_is_better=False, interval="wilson").as_json()


def _strength(entry: Mapping[str, Any]) -> tuple[bool, float]:
    """Comparable strength: an excess goes before a share without a control."""
    known = entry["excess"] is not None
    return known, float(entry["excess" if known else "brought_back"]["value"])
