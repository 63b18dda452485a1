"""The embedded scenarios by name, each with the settings of its demo."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unteach.errors import did_you_mean
from unteach.models.precision import multiplies_bfloat16
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
    """Fields of `RunOptions` for a demo: what suits two cores (docs/log.md has the measurements).

    Products are in bfloat16 where the machine has instructions for them, unless the settings name a
    precision or DeepSpeed trains, which would hold the weights in 16 bits too.
    """
    options = dict(embedded(name).demo(short=short))
    presets = dict(options.pop("settings"))
    if settings and settings.get("method", presets["method"]) != presets["method"]:
        presets = {
            key: value
            for key, value in presets.items()
            if not key.endswith("_weight") and key != "method"
        }
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not by_deepspeed and not {"bf16", "fp16", "deepspeed"} & set(settings or {}):
        presets["bf16"] = multiplies_bfloat16(use_cpu=bool((settings or {}).get("use_cpu")))
    return {
        "model": model,
        "output_dir": output_dir,
        "seed": seed,
        "show_text": show_text,
        **options,
        "settings": presets | dict(settings or {}),
    }
