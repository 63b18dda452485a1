"""The cost of a measured run on a larger model, projected from its token counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODELS: dict[str, float] = {"SmolLM2-135M": 134.5e6, "OPT-1.3B": 1.316e9, "Llama 2 7B": 6.738e9}
"""Parameters by model."""


def floating_point_operations(cost: Mapping[str, Any], parameters: float) -> float:
    """Floating-point operations of a run with these token counts on a model of `parameters`.

    6 N for each token trained on (forward 2 N, backward 4 N), 2 N for each token generated and for
    each one that is only read (prompts before generation, reference, reward model): Kaplan et al.
    2020 (arXiv 2001.08361), section 2.1, without the part that grows with the context. Frozen
    layers are counted as if they were trained, and reward and reference models have the policy's
    size.

    Args:
        cost: a `Cost` as a mapping: `training_tokens`, `generated_tokens`, `forward_tokens`.
        parameters (`float`): N.
    """
    read = cost["generated_tokens"] + cost.get("forward_tokens", 0)
    return float(parameters * (6 * cost["training_tokens"] + 2 * read))


def projected_seconds(
    cost: Mapping[str, Any], parameters: float, measured_parameters: float
) -> float:
    """Seconds on the machine of the measurement if each second did the same number of operations on
    a model of `parameters`.

    Raises:
        ValueError: for a cost without tokens.
    """
    measured = floating_point_operations(cost, measured_parameters)
    if measured <= 0:
        raise ValueError("a cost without tokens cannot be projected")
    return float(cost["seconds"]) * floating_point_operations(cost, parameters) / measured
