"""One stage of an alignment pipeline on TRL: its config, its data in TRL's format, its trainer, the
tokens that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from unteach import models
from unteach.data.rows import Row
from unteach.data.tokenization import render_prompt
from unteach.errors import UserError


def stage_config(stage: str, settings: Mapping[str, Any], output_dir: Path, seed: int) -> Any:
    """TRL's config for a stage, whose checkpoints go into `output_dir`.

    Raises:
        UserError: without TRL, and for a field that the config has not or refuses.
    """
    try:
        from unteach.baselines.stage_configs import STAGE_CONFIGS
    except ImportError:
        raise UserError(
            "the baselines stand on TRL, which is not installed; install it with: pip install"
            " 'unteach[baselines]'"
        ) from None
    kind = STAGE_CONFIGS[stage]
    common = {
        "output_dir": str(output_dir),
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_steps": 50,
        "save_total_limit": 2,  # the older one goes only when the newer one is whole
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    }
    more: dict[str, Any] = (
        {"reward_weights": [1.0, 0.0], "shuffle_dataset": False} if stage == "rl" else {}
    )
    try:
        return kind(**common | more | dict(settings))
    except (TypeError, ValueError) as error:
        raise UserError(f"stage {stage!r}: {' '.join(str(error).split())}") from None


class TokenCounter:
    """A reward function of weight 0 that only counts what was generated."""

    __name__ = "generated_tokens"

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        self.count += sum(map(len, completion_ids))
        return [0.0] * len(completions)


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def stage_records(stage: str, rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """The rows in TRL's format for a stage: messages where the tokenizer has a chat template, else
    the paper's template as text.

    `sft`: prompt, completion; `dpo` and `reward`: prompt, chosen, rejected; `rl`: prompt.
    """
    records: list[dict[str, Any]] = []
    for row in rows:
        if row.kind == "chat" and getattr(tokenizer, "chat_template", None):
            turns = [("user", row.prompt)] if isinstance(row.prompt, str) else row.prompt
            record: dict[str, Any] = {
                "prompt": [{"role": role, "content": text} for role, text in turns]
            }
            good, bad = (
                _turn("assistant", row.right.strip()),
                _turn("assistant", row.completion.strip()),
            )
        else:
            record = {"prompt": render_prompt(row, tokenizer).rstrip()}
            good = f" {row.right.strip()}"  # type: ignore[assignment]
            bad = f" {row.completion.strip()}"  # type: ignore[assignment]
        if stage == "sft":
            record["completion"] = good
        elif stage in ("dpo", "reward"):
            record |= {"chosen": good, "rejected": bad}
        records.append(record)
    return records


def make_trainer(
    stage: str, config: Any, start: Any, reward: Path, tokenizer: Any, rows: Sequence[Row]
) -> tuple[Any, TokenCounter]:
    """TRL's trainer of a stage, and what counts the tokens that it generates.

    Args:
        stage (`str`)
        config: from `stage_config`.
        start: the model to train, or the folder of the SFT model that the stage starts from and is
            held to.
        reward (`Path`): folder of the reward model, for `rl`.
        tokenizer: the models' tokenizer.
        rows (`Sequence[Row]`): prompt, bad answer and good answer.
    """
    from datasets import Dataset
    from trl import DPOTrainer, RewardTrainer, RLOOTrainer, SFTTrainer

    if (
        stage == "rl"
    ):  # TRL's own order of an epoch depends on those before it, which a resumed run has not drawn
        order = np.random.default_rng(config.seed).permutation(len(rows))
        rows = [rows[place] for place in order]
    data, counter = Dataset.from_list(stage_records(stage, rows, tokenizer)), TokenCounter()
    common = {"args": config, "train_dataset": data, "processing_class": tokenizer}
    if stage == "sft":
        return (
            SFTTrainer(
                model=models.load_model(str(start)) if isinstance(start, Path) else start, **common
            ),
            counter,
        )
    if stage == "dpo":
        return (
            DPOTrainer(
                model=models.load_model(str(start)),
                ref_model=models.load_model(str(start)),
                **common,
            ),
            counter,
        )
    if stage == "reward":
        return RewardTrainer(model=scorer(start, tokenizer, config.seed), **common), counter
    judge = scorer(reward, tokenizer, config.seed)
    policy = models.load_model(str(start))
    return (
        RLOOTrainer(
            model=policy,
            reward_funcs=[judge, counter],
            reward_processing_classes=[tokenizer, None],
            **common,
        ),
        counter,
    )


def scorer(folder: Path, tokenizer: Any, seed: int) -> Any:
    """A reward model: the weights in `folder` with one output; a new head is drawn from `seed`."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def pair_error(model: Any, tokenizer: Any, rows: Sequence[Row]) -> float:
    """Share of pairs whose good answer a reward model does not score above the bad one; the texts
    are those that TRL trains it on.
    """
    device = next(model.parameters()).device
    wrong = 0
    for record in stage_records("reward", rows, tokenizer):
        scores = []
        for kind in ("chosen", "rejected"):
            if isinstance(record["prompt"], list):
                ids = tokenizer.apply_chat_template(
                    record["prompt"] + record[kind], return_dict=True
                )["input_ids"]
            else:
                ids = tokenizer(record["prompt"] + record[kind] + tokenizer.eos_token)["input_ids"]
            scores.append(float(model(input_ids=torch.tensor([ids], device=device)).logits[0, 0]))
        wrong += scores[0] <= scores[1]
    return wrong / len(rows)


def read_tokens(stage: str, config: Any, seen: int, generated: int) -> tuple[int, int]:
    """(tokens trained on, tokens read forward only) of a stage.

    DPO's reference reads every token once. RL reads each prompt before it generates; then the
    policy of that moment, the reward model and, where there is a KL penalty, the reference read
    prompt and answer.

    Args:
        stage (`str`)
        config: TRL's config.
        seen (`int`): tokens by the trainer's own count: prompts and answers, each once.
        generated (`int`): those of them that the model wrote.
    """
    if stage == "dpo":
        return seen, seen
    if stage == "rl":
        readers = 3 if config.beta else 2
        return seen * config.num_iterations, (seen - generated) + readers * seen
    return seen, 0
