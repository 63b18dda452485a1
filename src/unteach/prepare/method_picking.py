"""`method=auto` in a run: the trials of `method_search` on the run's rows, each kept in the run's
folder, and what they settle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from unteach.config.run import RunOptions
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import rows_hash
from unteach.methods import get_method
from unteach.prepare.collecting import Collection
from unteach.prepare.method_search import (
    SearchContext,
    Trial,
    best_of,
    candidates,
    search,
    untried,
    why,
    with_given,
)
from unteach.progress import step_display
from unteach.trainer.costs import Cost


def pick(
    bench: SearchContext,
    collection: Collection,
    options: RunOptions,
    presets: Mapping[str, Any],
    whole: UnlearningConfig,
    first_rate: Callable[[str], float],
    make_config: Callable[..., UnlearningConfig],
) -> dict[str, Any]:
    """Settles what `auto` stands for; each trial is made once, whatever interrupts the search.

    Args:
        bench: what the trials share; its model is left as it was.
        collection: keeps each trial, the facts of the search, and its cost.
        options: the run's.
        presets: settings of the scenario, under the user's own.
        whole: the training that the search is for.
        first_rate: from a method's name to the learning rate of its first trial.
        make_config: from a folder and settings to the config of a trial.

    Returns:
        Fields of `UnlearningConfig`, method and learning rate among them.
    """
    settled = {
        key: value for key, value in {**presets, **options.settings}.items() if key != "teach"
    }
    steps = (
        min(options.search_steps, whole.max_steps) if whole.max_steps > 0 else options.search_steps
    )
    tried = candidates(options.candidates)
    if any(get_method(settings["method"]).needs_alternates for settings in tried):
        bench.forget = collection.with_alternates(bench.model, bench.tokenizer, bench.forget)
    rows = rows_hash([*bench.forget, *bench.retain])

    def attempt(settings: Mapping[str, Any]) -> Trial:
        given = with_given(settings, settled) | {
            "max_steps": steps,
            "probe_steps": 0.5,
            "save_strategy": "no",
        }
        title = f"Trying {settings['method']} at {settings['learning_rate']:g}"

        def make() -> dict[str, Any]:
            with collection.display.stage(title, steps) as stage:
                return bench.attempt(
                    make_config(bench.folder, **given), settings, step_display(stage)
                ).as_json()

        found = collection.cached(
            "trial",
            [settings, given, rows, options.lora, options.lora_rank, options.frozen_layers],
            make,
        )
        return Trial(**{name: value for name, value in found.items() if name != "score"})

    trials = search(attempt, first_rate, 60 * options.search_minutes, whole.target_rate, tried)
    picked = dict(best_of(trials).settings)
    left = untried(trials, tried)
    found = {
        "trials": [trial.as_json() for trial in trials],
        "picked": picked,
        "why": why(trials),
        "untried": left,
    }
    collection.facts["search"] = found
    spent = sum(trial.seconds for trial in trials)
    collection.costs.append(
        Cost(
            "method search",
            round(spent, 1),
            0,
            0,
            sum(trial.training_tokens for trial in trials),
            0.0,
        )
    )
    collection.display.print(f"Picked {why(trials)}")
    if left:
        collection.display.print(
            f"There was no time for {', '.join(left)}: more search_minutes, or fewer search_steps,"
            " let them be tried too"
        )
    torch.manual_seed(options.seed)  # trials made earlier drew nothing
    return picked
