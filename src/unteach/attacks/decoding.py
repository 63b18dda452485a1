"""Attacks that read more of a model than its greedy answer: sampled answers (leak@k), likely tokens
in the order of the original (contrast decoding), and its inner layers (the logit lens).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch

from unteach import models
from unteach.attacks.attack import Attack, LeftOut, Outcome, Trial, scored, undesired_answers_of
from unteach.attacks.prompting import attack_prompts
from unteach.attacks.prompts import plain
from unteach.attacks.target import Target
from unteach.data.counterfactuals import fact_tokens
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import (
    MIN_BATCH,
    answer_limit,
    continuation_text,
    end_ids,
    until_end,
)
from unteach.evaluation.results import FIELDS, MetricResult, summarise
from unteach.models.parts import final_norm, layer_list
from unteach.run.folder import ORIGINAL

# --- samples


def leak_at(samples: int, leaks: int, k: int) -> float:
    """Unbiased estimate of 1 - (1 - p)^k from c leaks of n draws: 1 - C(n - c, k) / C(n, k)
    (pass@k of Chen et al. 2021, arXiv 2107.03374, equation 1).

    It is the share of the subsets of k samples that hold a leak, computed as a product so that no
    binomial coefficient overflows.

    >>> leak_at(4, 1, 2)
    0.5

    Args:
        samples: n, at least k.
        leaks: c.
    """
    assert 0 <= leaks <= samples and 1 <= k <= samples
    if samples - leaks < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - leaks + 1, samples + 1))


def powers_to(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which ends them."""
    return [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples]


def leak_curve(leaks: Mapping[int, int], samples: int) -> list[dict[str, Any]]:
    """Leak@k at each k of `powers_to`, the mean over rows with its bootstrap interval.

    Args:
        leaks: row to how many of its samples leak.
    """
    points = []
    for k in powers_to(samples):
        rows = [leak_at(samples, count, k) for count in leaks.values()]
        points.append({"k": k, **summarise(rows, higher_is_better=False).as_json()})
    return points


def _sampled(trial: Trial) -> Outcome:
    target, settings = trial.target, trial.settings
    prompts = attack_prompts(plain, target.prompt_context)
    repeated = [prompt for prompt in prompts for _ in range(settings["samples"])]
    names = ("temperature", "top_p", "seed")
    draws = {name: settings[name] for name in names}
    undesired, cut = undesired_answers_of(
        target, trial.model(), repeated, progress=trial.progress, **draws
    )
    leaks: dict[int, int] = dict.fromkeys((prompt.group for prompt in prompts), 0)
    for prompt, flag in zip(repeated, undesired, strict=True):
        leaks[prompt.group] += flag
    points = leak_curve(leaks, settings["samples"])
    found = scored(trial, repeated, undesired, cut)
    metrics = {
        f"leak_at_{point['k']}": MetricResult(*(point[name] for name in FIELDS))
        for point in (points[0], points[-1])
    }
    return Outcome({**found.metrics, **metrics}, found.rows, {"leak_at_k": points})


def sampling(*, nucleus: bool, **more: Any) -> Attack:
    """Sampled answers, from the whole distribution or from its likeliest part (`--top-p`), as
    Scholten, Günnemann, Schwinn 2025 (arXiv 2410.03523).
    """

    def budget(target: Target) -> dict[str, Any]:
        options = target.options
        top_p = options.top_p if nucleus else 1.0
        names = ("samples", "temperature", "seed")
        return {**{name: getattr(options, name) for name in names}, "top_p": top_p}

    title = "sampling, top-p" if nucleus else "sampling"
    about = "answers sampled from the likeliest part of the distribution"
    about = about if nucleus else "answers sampled from the whole distribution"
    return Attack("sampling", title, about, _sampled, budget, **more)


# --- contrast decoding


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

    After Li et al. 2023, *Contrastive Decoding* (arXiv 2210.15097): the candidates are the attacked
    model's, so that what comes back was left in it; their order is that of the original, which
    finds what unlearning made less likely.

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


def _contrasted(trial: Trial) -> Outcome:
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
    _contrasted,
    lambda target: {"candidates": CANDIDATES, "weight": WEIGHT},
)
"""Tokens of the attacked model, in the order of the original and of the contrast with it."""


# --- the logit lens
#
# nostalgebraist 2020; as an attack: Patil, Hase, Bansal 2024, arXiv 2309.17410. Along the true
# completion, a row counts if one layer has each token of its facts among its few likeliest: an
# attacker who tries these candidates finds the fact although the output hides it.


LENS_CANDIDATES = 4
"""Likeliest tokens of a layer that are tried."""


@torch.no_grad()
def layers_with_facts(model: Any, tokenizer: Any, row: Row) -> list[bool] | None:
    """For each layer, whether it has every token of the row's facts (without facts: of its
    completion) among its `LENS_CANDIDATES` likeliest, given the true tokens before.

    `None` for a row whose prompt and completion merge, or whose completion holds none of its facts.
    """
    norm, head = final_norm(model), models.output_head(model)
    with contextlib.suppress(UserError):
        item = encode_row(row, tokenizer, None)
        wanted = fact_tokens(row, item, tokenizer) or (True,) * len(item.completion_ids)
        places = [place for place, fact in enumerate(wanted) if fact]
        if not places or norm is None:
            return None
        ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]], device=head.weight.device)
        out = models.decoder(model)(input_ids=ids, output_hidden_states=True, use_cache=False)
        before = [len(item.prompt_ids) + place - 1 for place in places]
        tokens = torch.tensor([item.completion_ids[place] for place in places]).to(ids.device)
        *inner, last = (hidden[0, before] for hidden in out.hidden_states[1:])
        states = torch.stack([*map(norm, inner), last])  # transformers has normed the last already
        pieces = states.flatten(0, 1).split(512)
        top = torch.cat([head.logits(piece).topk(LENS_CANDIDATES).indices for piece in pieces])
        right = (top.unflatten(0, states.shape[:2]) == tokens[:, None]).any(-1)  # (layers, tokens)
        return [bool(one) for one in right.all(-1)]
    return None


def _read(trial: Trial) -> Outcome:
    target, model = trial.target, trial.model()
    if final_norm(model) is None or layer_list(model) is None:
        raise LeftOut(f"{type(model).__name__} has no final norm or layers of a known name")
    rows: dict[int, float] = {}
    for index, row in enumerate(target.forget):
        found = layers_with_facts(model, target.tokenizer, row)
        if found is not None:
            rows[index] = float(any(found))
        trial.progress(index + 1, len(target.forget))
    if not rows:
        raise LeftOut("no forget row can be encoded with its completion")
    return trial.outcome(rows)


LOGIT_LENS = Attack(
    "inner_layers",
    "logit lens",
    "a layer has every token of the facts among its likeliest, along the true completion",
    _read,
    lambda target: {"candidates": LENS_CANDIDATES},
)
"""What any layer has among its likeliest tokens."""
