"""The embedded scenarios by name, each with the settings of its demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unteach.config.resolve import RUN_FIELDS, resolve
from unteach.errors import did_you_mean
from unteach.scenarios import copyright, hallucination, harmfulness
from unteach.scenarios.scenario import Scenario


@dataclass(frozen=True)
class Embedded:
    """An embedded scenario.

    Args:
        build: makes it; `short=True` gives a smaller version for smoke tests.
        demo: fields of `RunOptions` for its demo on two cores, settings of the trainer among them;
            `short` as above.
    """

    build: Callable[..., Scenario]
    demo: Callable[..., Mapping[str, Any]]


SCENARIOS: dict[str, Embedded] = {
    "copyright": Embedded(copyright.build, copyright.demo_presets),
    "harmfulness": Embedded(harmfulness.build, harmfulness.demo_presets),
    "hallucination": Embedded(hallucination.build, hallucination.demo_presets),
}


def embedded(name: str) -> Embedded:
    """The scenario of this name.

    Raises:
        UserError: for an unknown name, with the nearest.
    """
    if not isinstance(name, str) or name not in SCENARIOS:
        raise did_you_mean(str(name), list(SCENARIOS), "scenario")
    return SCENARIOS[name]


def build_scenario(name: str, *, short: bool = False) -> Scenario:
    """The embedded scenario of this name."""
    return embedded(name).build(short=short)


def demo_presets(name: str, *, short: bool = False) -> dict[str, Any]:
    """Presets for `resolve()`: what suits a demo on two cores (docs/log.md has the measurements)."""
    options = dict(embedded(name).demo(short=short))
    return {**options.pop("settings"), **options, "bf16": "auto"}


def demo_options(
    name: str,
    *,
    model: str,
    output_dir: str,
    seed: int = 0,
    short: bool = False,
    settings: Mapping[str, Any] | None = None,
    show_text: bool = True,
) -> dict[str, Any]:
    """Fields of `RunOptions` for a demo: `demo_presets` under the user's settings."""
    given = {"model": model, "output_dir": output_dir, "seed": seed, "show_text": show_text}
    resolved = resolve({**given, **(settings or {})}, presets=demo_presets(name, short=short))
    own = {
        field: getattr(resolved.run, field)
        for field, source in resolved.sources.items()
        if field in RUN_FIELDS and field != "method" and source != "default"
    }
    return {**own, "settings": resolved.chosen}
