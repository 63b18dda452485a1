"""Contrast decoding: whoever holds the original too can look, among the tokens that the unlearned
model still finds likely, for those that unlearning made less likely.

After Li et al. 2023, *Contrastive Decoding* (arXiv 2210.15097): the candidates are the attacked
model's, so that what comes back was left in it; their order is the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch

from unteach.attacks.attack import Attack, Outcome, Trial, scored
from unteach.attacks.prompting import attack_prompts
from unteach.attacks.wordings import plain
from unteach.evaluation.generation import (
    MIN_BATCH,
    answer_limit,
    continuation_text,
    end_ids,
    until_end,
)
from unteach.run.folder import ORIGINAL

CANDIDATES = 10
"""Likeliest tokens of the attacked model that are chosen from."""
WEIGHT = 0.5
"""Of the difference between the models' log-probabilities."""


@torch.no_grad()
def contrast_ids(
    model: Any,
    original: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[list[int]]:
    """Continuations: at each step the token, of the attacked model's `CANDIDATES` likeliest, with
    the highest log q + `WEIGHT` (log q - log p), p the attacked model's and q the original's.

    Args:
        model, original: causal language models of one vocabulary.
        prompts: token ids; decoded in batches of `MIN_BATCH`, sorted by length, with left padding.
    """
    outputs: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), MIN_BATCH):
        places = order[start : start + MIN_BATCH]
        length = len(prompts[places[-1]])
        gaps = [length - len(prompts[place]) for place in places]
        padded = zip(places, gaps, strict=True)
        whole = torch.tensor([[0] * gap + list(prompts[place]) for place, gap in padded])
        mask = torch.arange(length)[None] >= torch.tensor(gaps)[:, None]
        caches: list[Any] = [None, None]
        for _ in range(max_new_tokens):
            own, other = (
                _next_logprobs(one, whole, mask, caches, number)
                for number, one in enumerate((model, original))
            )
            top = own.topk(min(CANDIDATES, own.shape[-1])).indices
            score = (other + WEIGHT * (other - own)).gather(1, top)
            chosen = top.gather(1, score.argmax(-1, keepdim=True))
            whole = torch.cat([whole, chosen], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(places), 1)], dim=1)
            ended = [any(t in end_ids for t in row[length:]) for row in whole.tolist()]
            if all(ended):
                break
        for place, row in zip(places, whole.tolist(), strict=True):
            outputs[place] = until_end(row[length:], end_ids)
        progress(start + len(places), len(prompts))
    return outputs


def _next_logprobs(
    model: Any, whole: torch.Tensor, mask: torch.Tensor, caches: list[Any], number: int
) -> torch.Tensor:
    """Log-probabilities of the next token on the CPU, shape (rows, vocabulary); keeps the cache."""
    cache = caches[number]
    count, device = whole.shape[1] if cache is None else 1, next(model.parameters()).device
    inputs = {"input_ids": whole[:, -count:], "attention_mask": mask.long()}
    if "position_ids" in signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -count:]
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    out = model(**inputs, past_key_values=cache, use_cache=True)
    caches[number] = out.get("past_key_values")
    logprobs: torch.Tensor = out.logits[:, -1].float().log_softmax(-1).cpu()
    return logprobs


def _run(trial: Trial) -> Outcome:
    if trial.is_original:
        return trial.without_attack()
    target, model = trial.target, trial.model()
    prompts = attack_prompts(plain, target.prompt_context)
    rows = [prompt.row for prompt in prompts]
    chosen = target.options.max_new_tokens
    limit = chosen or answer_limit(target.tokenizer, rows, model)
    outputs = contrast_ids(
        model,
        target.folder.model(ORIGINAL),
        [prompt.ids for prompt in prompts],
        max_new_tokens=limit,
        end_ids=end_ids(target.tokenizer, model),
        progress=trial.progress,
    )
    texts = [
        continuation_text(target.tokenizer, prompt.ids, ids)
        for prompt, ids in zip(prompts, outputs, strict=True)
    ]
    cut = [len(ids) >= limit for ids in outputs]
    return scored(trial, prompts, target.scorers.shows_forgotten(rows, texts), cut)


CONTRAST = Attack(
    "decoding",
    "contrast decoding",
    "tokens that the model still finds likely, in the order of the original and of the contrast",
    _run,
    lambda target: {"candidates": CANDIDATES, "weight": WEIGHT},
)
"""Tokens of the attacked model, in the order of the original and of the contrast with it."""
