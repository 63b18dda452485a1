"""What a run can be told, beside the fields of `UnlearningConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunOptions:
    """How a run is done, beside what `UnlearningConfig` says.

    Args:
        model (`str`): the model to change.
        output_dir (`str`)
        seed (`int`)
        settings (`dict[str, Any]`): fields of `UnlearningConfig`; its `method` may also be a
            baseline's (`PIPELINES`).
        stages (`dict[str, dict]`): for a baseline, fields of TRL's config for each of its stages.
        lora (`bool`): train an adapter on all linear layers instead of all weights.
        lora_rank (`int`): its rank.
        dtype (`"float32"` or `"bfloat16"`): what the base model's frozen weights are held in under
            an adapter, which is of float32.
        quantize (`"4bit"`, *optional*): the base model's linear layers in 4 bits, frozen, under an
            adapter (QLoRA).
        frozen_layers (`int` or `float`): the embedding and so many of the first layers (under 1:
            that share) are not trained: cheaper.
        recite_tokens (`int`): how far the model is let go on after each `text` forget row, to find
            more of what it knows by heart; 0: not.
        shared_dir (`str`, *optional*): folder for what runs with other settings can use too (the
            taught model, the original's answers).
        search_minutes (`float`): for method `auto`, how long methods are tried before one is
            picked.
        search_steps (`int`): for method `auto`, optimiser steps of each trial (fewer, where the run
            itself has fewer).
        candidates (`str`, *optional*): for method `auto`, names of the methods to try, with commas
            between them.
        probe_rows (`int`): rows of each kind (forget, validation, retain) that a probe asks.
        show_text (`bool`): whether texts of the forget set may stand in the run's files.
        similarity_model (`str`, *optional*): encoder for `similarity`, or `bleurt:CHECKPOINT`;
            `None`: leave it out.
        headline (`str`, *optional*): the rate that decides, `leak_rate`, `harmful_rate` or
            `hallucination_rate`; default: the scenario's.
        judge, reward_model, fluency_model (`str`, *optional*): scorers by name, see `ScorerNames`;
            default: the scenario's.
        trust_remote_code (`bool`): run code that comes with the model.
    """

    model: str
    output_dir: str
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    lora_rank: int = 16
    dtype: str = "float32"
    quantize: str | None = None
    frozen_layers: float = 0
    recite_tokens: int = 0
    search_minutes: float = 10.0
    search_steps: int = 20
    candidates: str | None = None
    probe_rows: int = 24
    shared_dir: str | None = None
    show_text: bool = False
    similarity_model: str | None = "all-minilm-l6-v2"
    headline: str | None = None
    judge: str | None = None
    reward_model: str | None = None
    fluency_model: str | None = None
    trust_remote_code: bool = False
