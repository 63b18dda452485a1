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

try:
    from trl import (
        DPOConfig,
        DPOTrainer,
        RewardConfig,
        RewardTrainer,
        RLOOConfig,
        RLOOTrainer,
        SFTConfig,
        SFTTrainer,
    )
except ImportError:
    raise UserError(
        "the baselines need TRL, which is not installed; install it with: pip install"
        " 'unteach[baselines]'"
    ) from None


class _OneGpu:
    """One GPU for each process: without a launcher transformers would use all that it sees, and
    multiply the batch.
    """

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: at most one."""
        seen: Any = super()
        return min(1, int(seen.n_gpu))


class Sft(_OneGpu, SFTConfig):  # type: ignore[misc]
    """Of supervised fine-tuning."""


class Dpo(_OneGpu, DPOConfig):  # type: ignore[misc]
    """Of direct preference optimisation."""


class Reward(_OneGpu, RewardConfig):  # type: ignore[misc]
    """Of the reward model."""


class Rloo(_OneGpu, RLOOConfig):  # type: ignore[misc]
    """Of reinforcement learning."""


CONFIGS: dict[str, Any] = {"sft": Sft, "dpo": Dpo, "reward": Reward, "rl": Rloo}


def stage_config(stage: str, settings: Mapping[str, Any], output_dir: Path, seed: int) -> Any:
    """TRL's config for a stage, whose checkpoints go into `output_dir`.

    Raises:
        UserError: for a field that the config does not have or refuses.
    """
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
    if stage == "rl":
        common |= {"reward_weights": [1.0, 0.0], "shuffle_dataset": False}
    try:
        return CONFIGS[stage](**common | dict(settings))
    except (TypeError, ValueError) as error:
        raise UserError(f"stage {stage!r}: {' '.join(str(error).split())}") from None


class TokenCounter:
    """A reward function of weight 0 that counts the generated tokens."""

    __name__ = "generated_tokens"

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        self.count += sum(map(len, completion_ids))
        return [0.0] * len(completions)


def stage_records(stage: str, rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """The rows in TRL's format for a stage: messages where the tokenizer has a chat template, else
    the paper's template as text.

    `sft`: prompt, completion; `dpo` and `reward`: prompt, chosen, rejected; `rl`: prompt.
    """
    records = []
    for row in rows:
        answers = row.right.strip(), row.completion.strip()
        if row.kind == "chat" and getattr(tokenizer, "chat_template", None):
            turns = [("user", row.prompt)] if isinstance(row.prompt, str) else row.prompt
            prompt: Any = [{"role": role, "content": text} for role, text in turns]
            good, bad = ([{"role": "assistant", "content": text}] for text in answers)
        else:
            prompt = render_prompt(row, tokenizer).rstrip()
            good, bad = (f" {text}" for text in answers)  # type: ignore[assignment]
        record = {"prompt": prompt}
        if stage == "sft":
            record["completion"] = good
        elif stage in ("dpo", "reward"):
            record |= {"chosen": good, "rejected": bad}
        records.append(record)
    return records


def make_trainer(
    stage: str, config: Any, start: Any, reward: Path, tokenizer: Any, rows: Sequence[Row]
) -> tuple[Any, TokenCounter]:
    """TRL's trainer of a stage, and the counter of the tokens that it generates.

    Args:
        config: from `stage_config`.
        start: the model to train, or the folder of the SFT model: the stage's start and its
            reference.
        reward (`Path`): folder of the reward model, for `rl`.
        tokenizer: the models' tokenizer.
        rows (`Sequence[Row]`): prompt, bad answer and good answer.
    """
    from datasets import Dataset

    if stage == "rl":
        # TRL's own order of an epoch depends on those before it, which a resumed run has not drawn
        order = np.random.default_rng(config.seed).permutation(len(rows))
        rows = [rows[place] for place in order]
    data, counter = Dataset.from_list(stage_records(stage, rows, tokenizer)), TokenCounter()
    common = {"args": config, "train_dataset": data, "processing_class": tokenizer}
    if stage == "reward":
        return RewardTrainer(model=scorer(start, tokenizer, config.seed), **common), counter
    model = models.load_model(str(start)) if isinstance(start, Path) else start
    if stage == "sft":
        return SFTTrainer(model=model, **common), counter
    if stage == "dpo":
        reference = models.load_model(str(start))
        return DPOTrainer(model=model, ref_model=reference, **common), counter
    rewards = {
        "reward_funcs": [scorer(reward, tokenizer, config.seed), counter],
        "reward_processing_classes": [tokenizer, None],
    }
    return RLOOTrainer(model=model, **rewards, **common), counter


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
    """Share of pairs whose good answer a reward model does not score above the bad one, on the
    texts that TRL trains it on.
    """
    device = next(model.parameters()).device

    def score(prompt: Any, answer: Any) -> float:
        if isinstance(prompt, list):
            ids = tokenizer.apply_chat_template(prompt + answer, return_dict=True)["input_ids"]
        else:
            ids = tokenizer(prompt + answer + tokenizer.eos_token)["input_ids"]
        return float(model(input_ids=torch.tensor([ids], device=device)).logits[0, 0])

    records = stage_records("reward", rows, tokenizer)
    wrong = [
        score(record["prompt"], record["chosen"]) <= score(record["prompt"], record["rejected"])
        for record in records
    ]
    return sum(wrong) / len(rows)


def read_tokens(stage: str, config: Any, seen: int, generated: int) -> tuple[int, int]:
    """(tokens trained on, tokens read forward only) of a stage.

    DPO's reference reads every token once. RL reads each prompt before it generates; then the
    policy of that moment, the reward model and, where there is a KL penalty, the reference read
    prompt and answer.

    Args:
        config: TRL's config.
        seen (`int`): tokens by the trainer's own count: prompts and answers, each once.
        generated (`int`): those of them that the model generated.
    """
    if stage == "dpo":
        return seen, seen
    if stage == "rl":
        readers = 3 if config.beta else 2
        return seen * config.num_iterations, (seen - generated) + readers * seen
    return seen, 0
