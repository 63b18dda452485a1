"""One stage of an alignment pipeline on TRL: its config, its data in TRL's format, its trainer, the
tokens that it reads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from unteach import models
from unteach.config.unlearning import check_trackers
from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow, encode_prompt, encode_row, end_of_turn_id, shared
from unteach.errors import UserError
from unteach.evaluation.generation import end_ids

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


IGNORED = -100
"""Label of a token that is not trained on."""
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
        config = CONFIGS[stage](**common | dict(settings))
    except (TypeError, ValueError) as error:
        raise UserError(f"stage {stage!r}: {' '.join(str(error).split())}") from None
    check_trackers(config.report_to)
    return config


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


def row_ids(row: Row, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Token ids of (the prompt, its good answer, its bad answer). What only one of them has before
    it belongs to it.
    """
    items = _encoded(row, tokenizer)
    good, bad = ([*item.prompt_ids, *item.completion_ids] for item in items)
    start = shared(*(item.prompt_ids for item in items))
    return good[:start], good[start:], bad[start:]


def _encoded(row: Row, tokenizer: Any) -> tuple[EncodedRow, EncodedRow]:
    """The row with its good answer and with its bad one, as unlearning and evaluation have them."""
    end = end_of_turn_id(tokenizer)
    good, bad = (encode_row(row.with_completion(text), tokenizer, end) for text in answers_of(row))
    return good, bad


def answers_of(row: Row) -> tuple[str, str]:
    """The good answer and the bad one."""
    return row.right, row.completion


def stage_records(
    stage: str, rows: Sequence[Row], tokenizer: Any, max_length: int | None = None
) -> list[dict[str, Any]]:
    """The rows in TRL's format for a stage. `sft`: ids and labels; `reward`: the ids of both
    conversations; `dpo` and `rl`: messages whose contents name the row's tokens (`name_tokenizer`).

    Args:
        max_length (`int`, *optional*): most tokens of a prompt and an answer together.

    Raises:
        UserError: for a longer row, which TRL would cut or leave out.
    """
    records: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        prompt, good, bad = row_ids(row, tokenizer)
        most = len(prompt) + (len(good) if stage == "sft" else max(len(good), len(bad)))
        if max_length is not None and most > max_length:
            raise UserError(
                f"{row.source}: prompt and answer are {most} tokens, more than max_length"
                f" {max_length} of stage {stage!r}; set it in 'stages'"
            )
        if stage == "sft":
            item, _ = _encoded(row, tokenizer)
            labels = [IGNORED] * len(item.prompt_ids) + list(item.completion_ids)
            records.append({"input_ids": prompt + good, "labels": labels})
        elif stage == "reward":
            records.append({"chosen_ids": prompt + good, "rejected_ids": prompt + bad})
        else:
            record = {"prompt": [{"role": "user", "content": f"{number}"}]}
            if stage == "dpo":
                for name in ("chosen", "rejected"):
                    turn = {"role": "assistant", "content": f"{number} {name}"}
                    record[name] = [turn]
            records.append(record)
    return records


def name_tokenizer(stage: str, rows: Sequence[Row], tokenizer: Any) -> Any:
    """A copy of the tokenizer whose `apply_chat_template` returns the ids that the messages of
    `stage_records` name: these stages of TRL take no ids, and would render the rows themselves.
    """
    ids: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if stage == "rl":
            ids[f"{number}"] = list(encode_prompt(row, tokenizer))
        else:
            names = f"{number}", f"{number} chosen", f"{number} rejected"
            ids |= zip(names, row_ids(row, tokenizer), strict=True)

    def named(messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [token for message in messages for token in ids[message["content"]]]

    def apply_chat_template(conversation: Sequence[Any], **_: Any) -> dict[str, Any]:
        one = isinstance(conversation[0], Mapping)
        return {"input_ids": named(conversation) if one else [*map(named, conversation)]}

    found = copy.copy(tokenizer)
    found.apply_chat_template = apply_chat_template
    return found


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
    records = stage_records(stage, rows, tokenizer, getattr(config, "max_length", None))
    counter = TokenCounter()
    common = {"args": config, "train_dataset": Dataset.from_list(records)}
    if stage == "reward":
        model = scorer(start, tokenizer, config.seed)
        return RewardTrainer(model=model, processing_class=tokenizer, **common), counter
    model = models.load_model(str(start)) if isinstance(start, Path) else start
    if stage == "sft":
        return SFTTrainer(model=model, processing_class=tokenizer, **common), counter
    common |= {"model": model, "processing_class": name_tokenizer(stage, rows, tokenizer)}
    if stage == "dpo":
        return DPOTrainer(ref_model=models.load_model(str(start)), **common), counter
    reward_model = models.placed(scorer(reward, tokenizer, config.seed))
    rewards = [NamedReward(reward_model, rows, tokenizer), counter]
    settings = model.generation_config
    own, settings.eos_token_id = settings.eos_token_id, end_ids(tokenizer, model)
    trainer = RLOOTrainer(reward_funcs=rewards, **common)
    settings.eos_token_id = own
    return trainer, counter


class NamedReward:
    """The reward model's score of a prompt that `stage_records` names and a generated answer: of
    their tokens as they are, which is what the model was trained on.
    """

    __name__ = "reward_model"

    def __init__(self, model: Any, rows: Sequence[Row], tokenizer: Any) -> None:
        self.model, self.prompts = model.eval(), [encode_prompt(row, tokenizer) for row in rows]

    @torch.no_grad()
    def __call__(
        self, prompts: list[Any], completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        asked = (self.prompts[int(prompt[0]["content"])] for prompt in prompts)
        pairs = zip(asked, completion_ids, strict=True)
        return [score(self.model, [*prompt, *ids]) for prompt, ids in pairs]


def score(model: Any, ids: Sequence[int]) -> float:
    """A reward model's score of a conversation."""
    device = next(model.parameters()).device
    return float(model(input_ids=torch.tensor([list(ids)], device=device)).logits[0, 0])


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
    """Share of pairs whose good answer a reward model does not score above the bad one."""
    pairs = [row_ids(row, tokenizer) for row in rows]
    wrong = [
        score(model, prompt + good) <= score(model, prompt + bad) for prompt, good, bad in pairs
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
