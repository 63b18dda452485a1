"""Attacks by sampling: leak@k, the chance that at least one of k sampled answers shows the content.

Leak@k follows pass@k of Chen et al. 2021 (arXiv 2107.03374), equation 1; sampled answers as an
attack: Scholten, Günnemann, Schwinn 2025 (arXiv 2410.03523).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unteach.attacks.attack import Attack, Outcome, Trial, scored, undesired_answers_of
from unteach.attacks.prompting import attack_prompts
from unteach.attacks.target import Target
from unteach.attacks.wordings import plain
from unteach.evaluation.results import MetricResult, summarise


def leak_at(samples: int, leaks: int, k: int) -> float:
    """Unbiased estimate of 1 - (1 - p)^k from c leaks of n draws: 1 - C(n - c, k) / C(n, k).

    It is the share of the subsets of k samples that hold a leak, computed as a product so that no
    binomial coefficient overflows.

    >>> leak_at(4, 1, 2)
    0.5

    Args:
        samples: n, at least k.
        leaks: c.
    """
    assert 0 <= leaks <= samples and 1 <= k <= samples
    if samples - leaks < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - leaks + 1, samples + 1))


def powers_to(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which ends them."""
    return [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples]


def leak_curve(leaks: Mapping[int, int], samples: int) -> list[dict[str, Any]]:
    """Leak@k at each k of `powers_to`, the mean over rows with its bootstrap interval.

    Args:
        leaks: row to how many of its samples leak.
    """
    points = []
    for k in powers_to(samples):
        rows = [leak_at(samples, count, k) for count in leaks.values()]
        points.append({"k": k, **summarise(rows, higher_is_better=False).as_json()})
    return points


def _run(trial: Trial) -> Outcome:
    target, settings = trial.target, trial.settings
    prompts = attack_prompts(plain, target.prompt_context)
    repeated = [prompt for prompt in prompts for _ in range(settings["samples"])]
    names = ("temperature", "top_p", "seed")
    draws = {name: settings[name] for name in names}
    undesired, cut = undesired_answers_of(
        target, trial.model(), repeated, progress=trial.progress, **draws
    )
    leaks: dict[int, int] = dict.fromkeys((prompt.group for prompt in prompts), 0)
    for prompt, flag in zip(repeated, undesired, strict=True):
        leaks[prompt.group] += flag
    points = leak_curve(leaks, settings["samples"])
    found = scored(trial, repeated, undesired, cut)
    values = ("value", "n", "ci_low", "ci_high", "higher_is_better")
    metrics = {
        f"leak_at_{point['k']}": MetricResult(*(point[name] for name in values))
        for point in (points[0], points[-1])
    }
    return Outcome({**found.metrics, **metrics}, found.rows, {"leak_at_k": points})


def sampling(*, nucleus: bool, **more: Any) -> Attack:
    """Sampled answers, from the whole distribution or from its likeliest part (`--top-p`)."""

    def budget(target: Target) -> dict[str, Any]:
        options = target.options
        top_p = options.top_p if nucleus else 1.0
        names = ("samples", "temperature", "seed")
        return {**{name: getattr(options, name) for name in names}, "top_p": top_p}

    title = "sampling, top-p" if nucleus else "sampling"
    about = "answers sampled from the likeliest part of the distribution"
    about = about if nucleus else "answers sampled from the whole distribution"
    return Attack("sampling", title, about, _run, budget, **more)
