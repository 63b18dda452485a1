"""Embedded scenarios: what a model is taught, forgets and keeps, and the settings of the demo.

A new scenario is one file with a function that builds a `Scenario`, its texts, and an entry in
`SCENARIOS`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unteach.errors import did_you_mean
from unteach.scenarios import copyright, privacy, question_answers
from unteach.scenarios.scenario import Scenario


@dataclass(frozen=True)
class EmbeddedScenario:
    """An embedded scenario.

    Args:
        build: returns the `Scenario`; `short=True` gives a smaller one for smoke tests.
        demo: returns the settings of the demo on two cores (docs/log.md has the measurements):
            fields of `RunConfig` and of `UnlearningConfig`; `short` as above.
    """

    build: Callable[..., Scenario]
    demo: Callable[..., Mapping[str, Any]]


SCENARIOS: dict[str, EmbeddedScenario] = {
    "copyright": EmbeddedScenario(copyright.build, copyright.demo),
    "harmfulness": EmbeddedScenario(
        question_answers.harmfulness, question_answers.harmfulness_demo
    ),
    "hallucination": EmbeddedScenario(
        question_answers.hallucination, question_answers.hallucination_demo
    ),
    "privacy": EmbeddedScenario(privacy.build, privacy.demo),
}


def embedded_scenario(name: str) -> EmbeddedScenario:
    """The entry of `SCENARIOS` with this name.

    Raises:
        UserError: for an unknown name, with the nearest.
    """
    if not isinstance(name, str) or name not in SCENARIOS:
        raise did_you_mean(str(name), list(SCENARIOS), "scenario")
    return SCENARIOS[name]


def build_scenario(name: str, *, short: bool = False) -> Scenario:
    """The embedded scenario of this name."""
    return embedded_scenario(name).build(short=short)


def demo_presets(name: str, *, short: bool = False) -> dict[str, Any]:
    """Presets for `resolve()`: the settings of the scenario's demo, in bfloat16 where the machine
    has instructions for it.
    """
    return {**embedded_scenario(name).demo(short=short), "bf16": "auto"}
