"""The embedding attack: vectors in the prompt, optimised so that forget completions are likely
(Schwinn et al. 2024, *Soft Prompt Threats*, arXiv 2402.09063).

They are optimised on one half of the forget rows and tried on the other, and the reverse: a row
that comes back was in the model, not in the vectors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unteach import models
from unteach.attacks.attack import Attack, LeftOut, Outcome, Trial
from unteach.attacks.prompting import CUT_OFF, attack_prompts, cut_rate
from unteach.attacks.target import Target
from unteach.attacks.wordings import plain
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.likelihood import batch_states

VECTORS = 16
RATE = {"quick": 2e-2, "full": 1e-2}
"""Learning rate by level: fewer steps are longer."""
PLACE = 1
LEARNT, PLATEAU = 0.02, 0.05
"""Mean NLL, in nats per token, at which vectors are learnt; least improvement, as a share of it."""


class _SoftEmbedding(nn.Module):
    """An input embedding in which ids from `first` on are the vectors."""

    def __init__(self, inner: nn.Module, first: int, vectors: Tensor) -> None:
        super().__init__()
        self.inner, self.first, self.vectors = inner, first, vectors

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of ids; shape (rows, length, width)."""
        soft = ids >= self.first
        found: Tensor = self.inner(ids.masked_fill(soft, 0))
        made = self.vectors[(ids - self.first).clamp_min(0)].to(found)
        mixed: Tensor = torch.where(soft[..., None], made, found)
        return mixed


@contextlib.contextmanager
def soft_tokens(model: Any, vectors: Tensor) -> Iterator[list[int]]:
    """Token ids that stand for vectors of shape (count, width) while the block runs."""
    inner = model.get_input_embeddings()
    first = int(inner.weight.shape[0])
    model.set_input_embeddings(_SoftEmbedding(inner, first, vectors))
    try:
        yield [first + number for number in range(len(vectors))]
    finally:
        model.set_input_embeddings(inner)


def optimised_vectors(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int], None] = lambda step: None,
) -> Iterator[Tensor]:
    """Vectors of shape (`VECTORS`, width) in the prompts (`with_soft`) that minimise the mean NLL
    of the rows' completion tokens, after each of `moments(steps)`; Adam, the model stays as it is.

    Each step draws `batch` rows. They end early where the mean NLL since the last moment is under
    `LEARNT`, or lower by less than the share `PLATEAU` than that before it.
    """
    weight = model.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(weight.shape[0], (VECTORS,), generator=draw)
    vectors = weight.detach()[ids.to(weight.device)].float().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([vectors], lr=learning_rate)
    head = models.output_head(model)
    losses: list[float] = []
    before = math.inf
    for step in range(1, steps + 1):
        order = torch.randperm(len(rows), generator=draw).tolist()
        with soft_tokens(model, vectors) as soft, torch.enable_grad():
            loss = _nll(model, head, [rows[place] for place in order[:batch]], soft)
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        progress(step)
        if step in moments(steps):
            yield vectors.detach().clone()
            mean, losses = sum(losses) / len(losses), []
            if mean < LEARNT or mean > (1 - PLATEAU) * before:
                return
            before = mean


def with_soft(prompt: Sequence[int], soft: Sequence[int]) -> tuple[int, ...]:
    """A prompt with the soft tokens behind its first token, which models attend to in any prompt;
    the distances between its other tokens stay as they are.
    """
    return (*prompt[:PLACE], *soft, *prompt[PLACE:])


def moments(steps: int) -> set[int]:
    """The steps whose vectors are tried on the rows that are not shown yet: later ones may fit
    their half of the rows too closely.
    """
    return {-(-steps // 4), -(-steps // 2), steps}


def _nll(model: Any, head: Any, rows: Sequence[EncodedRow], soft: list[int]) -> Tensor:
    """Mean NLL of all completion tokens after prompt and soft tokens."""
    prompts = [with_soft(row.prompt_ids, soft) for row in rows]
    states, wanted = batch_states(model, prompts, [row.completion_ids for row in rows])
    return nn.functional.cross_entropy(head.logits(states), wanted)


def _encoded(trial: Trial) -> dict[int, EncodedRow]:
    tokenizer, found = trial.target.tokenizer, {}
    for index, row in enumerate(trial.target.forget):
        with contextlib.suppress(UserError):
            found[index] = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
    return found


def _run(trial: Trial) -> Outcome:
    target, settings, model = trial.target, trial.settings, trial.model()
    encoded, prompts = _encoded(trial), attack_prompts(plain, target.prompt_context)
    if len(encoded) < 2:
        raise LeftOut("fewer than two forget rows can be encoded with their completions")
    _check_embeddings(model)
    shown: dict[int, float] = {prompt.group: 0.0 for prompt in prompts}
    all_cut: list[bool] = []
    for half in (0, 1):

        def progress(step: int, half: int = half) -> None:
            trial.progress(half * settings["steps"] + step, 2 * settings["steps"])

        fitted = [row for index, row in encoded.items() if index % 2 != half]
        left = [prompt for prompt in prompts if prompt.group % 2 == half]
        if not fitted or not left:
            continue
        how = {name: settings[name] for name in ("steps", "batch", "learning_rate", "seed")}
        for vectors in optimised_vectors(model, fitted, **how, progress=progress):
            with soft_tokens(model, vectors) as soft:
                texts, cut = trial.answers(model, left, change=partial(with_soft, soft=soft))
            found = target.scorers.shows_forgotten([prompt.row for prompt in left], texts)
            shown |= {prompt.group: 1.0 for prompt, flag in zip(left, found, strict=True) if flag}
            left, all_cut = [prompt for prompt in left if not shown[prompt.group]], [*all_cut, *cut]
            if not left:
                break
    return trial.outcome(shown, **{CUT_OFF: cut_rate(all_cut)})


@torch.no_grad()
def _check_embeddings(model: Any) -> None:
    """Raises `LeftOut` for a model that does not read soft tokens by its input embedding."""
    try:
        with soft_tokens(model, model.get_input_embeddings().weight[:1]) as soft:
            ids = torch.tensor([soft], device=models.output_head(model).weight.device)
            models.decoder(model)(input_ids=ids)
    except (IndexError, NotImplementedError, AttributeError):
        raise LeftOut(f"{type(model).__name__} takes no other input embeddings") from None


def _too_few(target: Target) -> str | None:
    return None if len(target.forget) > 1 else "it needs two forget rows, one for each half"


SOFT_PROMPT = Attack(
    "embeddings",
    "soft prompt",
    "vectors optimised on one half of the forget rows, tried on the other",
    _run,
    lambda target: {
        "steps": target.options.soft,
        "tried_after": sorted(moments(target.options.soft)),
        "batch": 8 if target.options.thorough else 4,
        "vectors": VECTORS,
        "learning_rate": RATE[target.options.level],
        "seed": target.options.seed,
    },
    missing=_too_few,
)
"""Optimised vectors in each prompt."""
