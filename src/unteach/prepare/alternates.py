"""Other answers of the model's own to the forget prompts, sampled before training, for methods that
prefer one (AltPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt
from unteach.errors import UserError
from unteach.evaluation.generation import HABITS, Progress, continuation_text, end_ids
from unteach.evaluation.text_metrics import rouge_l
from unteach.seeding import row_generator

SAMPLES = 8
TEMPERATURE = 1.0


@torch.no_grad()
def sampled_answers(
    model: Any,
    tokenizer: Any,
    row: Row,
    *,
    count: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """`count` answers to the row's prompt, drawn by seed and row alone, as text that goes on where
    the prompt ends.
    """
    prompt = encode_prompt(row, tokenizer)
    device = next(model.parameters()).device
    ends = end_ids(tokenizer)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(row_generator("alternate", seed, row.key).integers(2**31)))
        made = model.generate(
            input_ids=torch.tensor([list(prompt)], device=device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
            num_beams=1,
            num_return_sequences=count,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            eos_token_id=ends or None,
            synced_gpus=False,  # each process has rows of its own
            **{**dict.fromkeys(HABITS), "do_sample": True, "temperature": temperature, "top_k": 0},
        )
    answers = []
    for continuation in made[:, len(prompt) :].tolist():
        stops = [place for place, token in enumerate(continuation) if token in ends]
        answers.append(
            continuation_text(
                tokenizer, prompt, continuation[: stops[0]] if stops else continuation
            )
        )
    return answers


def with_alternates(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    seed: int,
    max_new_tokens: int,
    count: int = SAMPLES,
    temperature: float = TEMPERATURE,
    progress: Progress | None = None,
) -> list[Row]:
    """The rows, each with the field `alternate`: of so many sampled answers the one that is least
    like the completion to forget.

    Likeness is ROUGE-L F1. A row that has an alternate keeps it.

    Args:
        model: the model before unlearning.
        tokenizer: its tokenizer.
        rows (`Sequence[Row]`)
        seed (`int`): draws depend on it and on the row, not on the order.
        max_new_tokens (`int`)
        count (`int`): samples for each row.
        temperature (`float`): of the samples.
        progress (`Callable`, *optional*): called with (done, of) rows.

    Raises:
        UserError: naming a row to which every sampled answer is empty or the completion itself.
    """
    made = []
    training = model.training
    model.eval()
    for number, row in enumerate(rows, 1):
        if not row.alternate:
            answers = sampled_answers(
                model,
                tokenizer,
                row,
                count=count,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
            other = [
                answer
                for answer in answers
                if answer.strip() and answer.split() != row.completion.split()
            ]
            if not other:
                raise UserError(
                    f"{row.source or 'forget row ' + row.key}: none of {count} sampled answers is"
                    " another one; give field 'alternate'"
                )
            row = replace(
                row, alternate=min(other, key=lambda answer: rouge_l(answer, row.completion)[1])
            )
        made.append(row)
        if progress:
            progress(number, len(rows))
    model.train(training)
    return made
