"""What a scenario is: rows for each purpose, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.rows import LabelledAnswer, Row


@dataclass(frozen=True)
class Scenario:
    """The rows of a run, and how its outputs are scored.

    Args:
        forget (`list[Row]`): training split of the forget set.
        validation (`list[Row]`): its validation split, for early stopping.
        retain (`list[Row]`): rows to keep; more may be added from the model's own answers.
        neighbours (`list[Row]`): rows like the forgotten ones about other things; they join the
            retain set. Others, which are held out, are the prompt set `neighbours`.
        sets (`dict[str, list[Row]]`): prompt sets of the evaluation; the output for a row without a
            completion is compared with the original model's. Sets whose names end in `unseen`,
            `neighbours` and `normal` are of no training set.
        own_prompts (`list[Row]`): prompts; the original model's answers join the retain set.
        teach (`list[Row]`): what the model is taught first; empty for one that knows it already.
        teach_own_prompts (`list[Row]`): prompts; the untaught model's answers are taught too, to
            keep its behaviour.
        teach_settings: fields of `UnlearningConfig` for the teaching, and `frozen_layers`.
        leak_corpus (`list[str]`): texts whose pairwise BLEU gives the leak threshold.
        labelled (`list[LabelledAnswer]`): for scorers that are trained.
        unknown (set of `str`): keys of forget rows in which no fact was found: nothing in them
            can be seen to be forgotten.
        notes (`list[str]`): sentences about rows that were left out.
        files (`dict[str, Any]`): arguments with which `user_scenario` rebuilds a user's scenario;
            empty for an embedded one.
    """

    name: str
    forget: list[Row]
    validation: list[Row]
    retain: list[Row]
    sets: Mapping[str, list[Row]]
    neighbours: list[Row] = field(default_factory=list)
    own_prompts: list[Row] = field(default_factory=list)
    teach: list[Row] = field(default_factory=list)
    teach_own_prompts: list[Row] = field(default_factory=list)
    teach_settings: Mapping[str, Any] = field(default_factory=dict)
    leak_corpus: list[str] = field(default_factory=list)
    labelled: list[LabelledAnswer] = field(default_factory=list)
    scorers: ScorerNames = field(default_factory=ScorerNames)
    unknown: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    files: Mapping[str, Any] = field(default_factory=dict)
