"""`attacks.json`, written as soon as an attack is done, and the parts of attacks in `work/attacks`
that a second start finds again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from unteach.attacks.target import Target
from unteach.data.rows import rows_hash
from unteach.files.atomic import write_json
from unteach.files.folders import content_key
from unteach.run.record import versions

SCHEMA_VERSION = 1
Metrics = dict[str, Any]


class Results:
    """What is known about one target.

    Args:
        target (`Target`)
    """

    def __init__(self, target: Target) -> None:
        self.target, self.path = target, target.folder / "attacks.json"
        self.found = self._so_far()

    def _so_far(self) -> dict[str, Any]:
        """What earlier starts left in `attacks.json`, if it is about the same models."""
        target = self.target
        about = {
            "original_model_hash": target.hash_of("original"),
            "unlearned_model_hash": target.hash_of("unlearned"),
        }
        empty = {
            "schema_version": SCHEMA_VERSION,
            "scenario": target.record["scenario"],
            "headline": target.rate,
            **about,
        }
        empty |= {
            "versions": versions(),
            "forget_rows": len(target.forget),
            "settings": {},
            "attacks": {},
            "curves": {},
            "left_out": {},
        }
        if not self.path.exists():
            return empty
        found = dict(json.loads(self.path.read_text(encoding="utf-8")))
        same = all(
            found.get(name) == empty[name]
            for name in ("schema_version", "headline", "forget_rows", *about)
        )
        return found if same else empty

    def kept(self, name: str, role: str, inputs: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns (plain data), or what it returned before for the same model, rows,
        scorer and settings.
        """
        target = self.target
        scorer = [
            target.rate,
            target.scorers.threshold,
            target.scorers.names.judge,
            target.scorers.unrelated,
        ]
        key = content_key(
            [SCHEMA_VERSION, target.hash_of(role), rows_hash(target.forget), scorer, inputs]
        )
        path = target.work / f"{name}-{role}-{key}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        value = make()
        write_json(path, value)
        return value

    def add(
        self,
        name: str,
        found: Mapping[str, Metrics],
        settings: Mapping[str, Any],
        curves: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts one attack into `attacks.json`."""
        self.found["attacks"][name] = dict(found)
        self.found["settings"][name] = dict(settings)
        self.found["left_out"].pop(name, None)
        if curves:
            self.found["curves"][name] = dict(curves)
        write_json(self.path, self.found)

    def leave_out(self, name: str, why: str) -> None:
        """Notes why an attack was not made; the result of an earlier start stays."""
        if name not in self.found["attacks"]:
            self.found["left_out"][name] = why
            write_json(self.path, self.found)
        self.target.display.say(f"No {name.replace('_', ' ')}: {why}")
