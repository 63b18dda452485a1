"""`RunConfig`: the options of a run beside those of its training. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from unteach.config.values import check_ranges, check_types
from unteach.errors import UserError

Headline = Literal["leak_rate", "said_facts", "harmful_rate", "hallucination_rate"]
Finder = Literal["none", "patterns", "presidio"]
Precision = Literal["float32", "bfloat16"]
DATA_OPTIONS = ("forget", "topic", "retain", "unseen", "neighbours", "hold_out", "split_by")
"""Options of a run that choose its rows."""


def option(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field with its help text.

    Args:
        default: its default, or a type that makes one.
        more: other metadata: `minimum`, `below`; for the command line `alias` (its name there),
            `metavar`, `required`, `positional`, `also` (one more flag), `several` (files, each a
            word).
    """
    made = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return field(**made, metadata={"help": help, **more})


def run_option(name: str, **changes: Any) -> Any:
    """The same field as `RunConfig` has, for the options of another command.

    Args:
        changes: another `default`, `help` or other metadata.
    """
    known = RunConfig.__dataclass_fields__[name]
    about = {name: value for name, value in known.metadata.items() if name != "required"}
    return field(default=changes.pop("default", known.default), metadata={**about, **changes})


def required(name: str, **more: Any) -> Any:
    """A field without a default, with `RunConfig`'s metadata where that has a field of the name."""
    known = RunConfig.__dataclass_fields__.get(name)
    return field(metadata={**(known.metadata if known else {}), **more})


@dataclass(frozen=True)
class RunConfig:
    """The options of a run; those of its training are fields of `UnlearningConfig`.

    Each field's meaning is the `help` of its metadata, which the command line prints.
    `resolve()` makes the objects.

    Raises:
        UserError: for a value of another type or out of range.
    """

    model: str = option("", "hub id, local folder or packaged name of the model", required=True)
    forget: Any = option(
        None, "rows to forget: a file or a dataset, or several", required=True, several=True
    )
    topic: str | None = option(
        None,
        "in place of rows to forget, a name: what the model says about it is forgotten",
        metavar="NAME",
    )
    retain: Any = option(
        None, "rows to keep, beside the model's own answers to neutral prompts", several=True
    )
    unseen: Any = option(
        None,
        "rows or prompts whose answers must be forgotten too; only measured, not trained on",
        several=True,
    )
    neighbours: Any = option(
        None,
        "rows or prompts like the forgotten ones about other things: half of them are kept like"
        " retain rows, half are only measured",
        several=True,
    )
    hold_out: float = option(
        0.0,
        "share of the forget rows that is not trained on, by hash: a third of it for the probes,"
        " the rest measured as unseen; 0.3 is the 70/10/20 of the paper",
        minimum=0,
        below=1,
    )
    split_by: str | None = option(
        "prompt", "rows with the same value of this column fall into the same split"
    )
    secrets: Finder = option(
        "patterns",
        "personal data taken as the secret of a row without one: patterns finds e-mails, phone,"
        " card and account numbers, presidio what Presidio finds (extra), none nothing",
    )
    output_dir: str = option("", "folder of the run's files", alias="out", required=True)
    method: str = option(
        "log_odds_mismatch",
        "method, see docs/reference/methods.md; auto tries several and takes the best; sft, dpo and"
        " rlhf train on good answers",
    )
    robust: str = option(
        "none",
        "what makes the forgetting last, see docs/reference/methods.md: sam, relearn, rounding,"
        " perturb, distill, or several joined by +",
        metavar="NAMES",
    )
    instead: str | None = option(
        None,
        "what the model shall say to the forget prompts, a sentence; other prompts are guarded"
        " against it",
        metavar="SENTENCE",
    )
    scenario: str | None = option(
        None, "score the outputs as this embedded scenario does; default: by facts or leak rate"
    )
    seed: int = option(0, "seed of the training, its order and its random draws", minimum=0)
    lora: bool = option(False, "train an adapter on all linear layers instead of all weights")
    lora_rank: int = option(16, "rank of the adapter", minimum=1)
    merge: bool = option(False, "with lora: write the whole model, the adapter merged")
    gguf: bool = option(
        False, "write model.gguf too, with llama.cpp's converter (LLAMA_CPP: its folder)"
    )
    dtype: Precision = option("float32", "with lora: precision of the frozen weights")
    quantize: Literal["4bit"] | None = option(
        None, "with lora: frozen linear layers in 4 bits (QLoRA; needs a GPU)"
    )
    frozen_layers: float = option(
        0, "do not train the embedding and the first N layers (under 1: that share)", minimum=0
    )
    recite_tokens: int = option(
        0,
        "let the original model continue each text row by N tokens and forget what it recites",
        minimum=0,
    )
    paraphrases: int = option(
        16, "most forget prompts that are measured in other words too; 0: none", minimum=0
    )
    search_minutes: float = option(10.0, "with method auto: minutes for all trials")
    search_steps: int = option(20, "with method auto: optimiser steps of each trial")
    candidates: str | None = option(
        None, "with method auto: methods to try, separated by commas", metavar="NAMES"
    )
    stages: dict[str, Any] = option(
        dict, "with sft, dpo or rlhf: settings by stage, '{sft: {learning_rate: 1e-5}}'"
    )
    system: str | None = option(
        None, "system prompt of rows that have none, in training and in every evaluation"
    )
    chat_template_kwargs: dict[str, Any] = option(
        dict, "variables of the chat template, '{enable_thinking: false}'"
    )
    chat_date: str | None = option(
        None,
        "day, as YYYY-MM-DD, that a chat template is told; default: that of the folder's first"
        " start",
    )
    max_new_tokens: int | None = option(
        None,
        "most tokens of a generated answer; default: those of the longest completion and 16 more,"
        " at least 56, and 512 more where the model may think before it answers",
        minimum=1,
    )
    probe_rows: int = option(
        24,
        "most forget rows that a probe prompts, and most rows to keep that it reads",
        minimum=1,
    )
    shared_dir: str | None = option(
        None, "folder for what runs with other settings can reuse; default: the run's own"
    )
    show_text: bool = option(False, "write forget texts to generations.jsonl and the report")
    headline: Headline | None = option(
        None,
        "the forget rate that decides; default: the scenario's, else said_facts where most forget"
        " rows have facts in 'secret', else leak_rate",
    )
    judge: str | None = option(
        None, "scorer of harm: trained, or a text-classification model; default: the scenario's"
    )
    reward_model: str | None = option(
        None, "scorer of usefulness: trained, or a reward model; default: the scenario's"
    )
    similarity_model: str | None = option(
        "all-minilm-l6-v2", "sentence encoder for normal answers, bleurt:CHECKPOINT, or none"
    )
    fluency_model: str | None = option(
        None, "language model that scores fluency; default: the model before training"
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")

    @property
    def writes_adapter(self) -> bool:
        """Whether the run leaves `adapter/` instead of `model/`."""
        return self.lora and not self.merge

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        check_types(values, type(self))
        check_ranges(values, type(self))


def refuse_data_options(given: Mapping[str, Any], instead: str) -> None:
    """Raises `UserError` for an option that chooses rows, where others are chosen already.

    Args:
        given: options by name.
        instead (`str`): a clause that says where the rows come from.
    """
    for name in DATA_OPTIONS:
        if given.get(name) is not None:
            raise UserError(f"option {name!r} has no place here: {instead}")
