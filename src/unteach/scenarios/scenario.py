"""What a scenario is: rows for each purpose, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.rows import LabelledAnswer, Row


@dataclass(frozen=True)
class Scenario:
    """Everything that a run needs to know about its data.

    Args:
        name (`str`)
        forget (`list[Row]`): training split of the forget set.
        validation (`list[Row]`): its validation split, for the stop decision.
        retain (`list[Row]`): rows to keep; more may be added from the model's own answers.
        sets (`dict[str, list[Row]]`): prompt sets of the evaluation; a row without completion is
            compared with the original's answer.
        own_prompts (`list[Row]`): prompt-only rows whose answers by the original model join the
            retain set.
        teach (`list[Row]`): what the model is taught before anything else; empty for a model that
            already knows.
        teach_own_prompts (`list[Row]`): prompt-only rows whose answers by the untaught model are
            taught along, so that it stays the model that it was in all else.
        leak_corpus (`list[str]`): texts whose pairwise BLEU gives the leak threshold.
        labelled (`list[LabelledAnswer]`): answers known to be bad or good, for scorers that are
            trained.
        scorers (`ScorerNames`): who scores the answers, and by which rate the run is judged.
        presets (`dict[str, Any]`): settings of `UnlearningConfig` that suit it.
        files (`dict[str, Any]`): how a user's rows are found again: the arguments of
            `user_scenario` other than the scorers; empty for an embedded scenario, which its name
            names.
    """

    name: str
    forget: list[Row]
    validation: list[Row]
    retain: list[Row]
    sets: Mapping[str, list[Row]]
    own_prompts: list[Row] = field(default_factory=list)
    teach: list[Row] = field(default_factory=list)
    teach_own_prompts: list[Row] = field(default_factory=list)
    leak_corpus: list[str] = field(default_factory=list)
    labelled: list[LabelledAnswer] = field(default_factory=list)
    scorers: ScorerNames = field(default_factory=ScorerNames)
    presets: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
