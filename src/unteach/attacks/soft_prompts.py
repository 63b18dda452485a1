"""The embedding attack: vectors in the prompt, optimised so that forget completions are likely
(Schwinn et al. 2024, *Soft Prompt Threats*, arXiv 2402.09063).

They are optimised on one half of the forget rows and tried on the other, and the reverse: a row
that comes back was in the model, not in the vectors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unteach import models
from unteach.attacks.attack import Attack, LeftOut, Outcome, Trial, scored
from unteach.attacks.prompting import AttackPrompt, attack_prompts
from unteach.attacks.target import Target
from unteach.attacks.wordings import plain
from unteach.data.tokenization import EncodedRow, encode_row, end_of_turn_id
from unteach.errors import UserError

VECTORS = 16
RATE = 1e-2
PLACE = 1
BATCH = 8
"""Rows of a step."""


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
    seed: int,
    progress: Callable[[int], None] = lambda step: None,
) -> list[Tensor]:
    """Vectors of shape (`VECTORS`, width) in the prompts (`with_soft`) that minimise the mean NLL
    of the rows' completion tokens, after each of `moments(steps)`; Adam, the model stays as it is.
    """
    weight = model.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(weight.shape[0], (VECTORS,), generator=draw)
    vectors = weight.detach()[ids.to(weight.device)].float().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([vectors], lr=RATE)
    head = models.output_head(model)
    kept = [vectors.detach().clone()] if not steps else []
    with soft_tokens(model, vectors) as soft, torch.enable_grad():
        for step in range(steps):
            order = torch.randperm(len(rows), generator=draw).tolist()
            loss = _nll(model, head, [rows[place] for place in order[:BATCH]], soft)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress(step + 1)
            if step + 1 in moments(steps):
                kept.append(vectors.detach().clone())
    return kept


def with_soft(prompt: Sequence[int], soft: Sequence[int]) -> tuple[int, ...]:
    """A prompt with the soft tokens behind its first token, which models attend to in any prompt;
    the distances between its other tokens stay as they are.
    """
    return (*prompt[:PLACE], *soft, *prompt[PLACE:])


def moments(steps: int) -> set[int]:
    """The steps whose vectors are tried: later ones may fit their half of the rows too closely."""
    return {-(-steps // 4), -(-steps // 2), steps}


def _nll(model: Any, head: Any, rows: Sequence[EncodedRow], soft: list[int]) -> Tensor:
    """Mean NLL of all completion tokens after prompt and soft tokens."""
    device = head.weight.device
    texts = [[*with_soft(row.prompt_ids, soft), *row.completion_ids] for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
    mask = torch.tensor(
        [[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device
    )
    hidden = models.decoder(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    states: list[Tensor] = []
    targets: list[int] = []
    for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
        start, end = len(text) - len(row.completion_ids), len(text)
        states.append(hidden[place, start - 1 : end - 1])
        targets += row.completion_ids
    wanted = torch.tensor(targets, device=device)
    return nn.functional.cross_entropy(head.logits(torch.cat(states)), wanted)


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
    tried: list[AttackPrompt] = []
    undesired: list[bool] = []
    all_cut: list[bool] = []
    for half in (0, 1):

        def progress(step: int, half: int = half) -> None:
            trial.progress(half * settings["steps"] + step, 2 * settings["steps"])

        fitted = [row for index, row in encoded.items() if index % 2 != half]
        others = [prompt for prompt in prompts if prompt.group % 2 == half]
        if not fitted or not others:
            continue
        vectors = optimised_vectors(
            model,
            fitted,
            steps=settings["steps"],
            seed=settings["seed"],
            progress=progress,
        )
        for one in vectors:
            with soft_tokens(model, one) as soft:
                changed = partial(with_soft, soft=soft)
                texts, cut = trial.answers(model, others, change=changed)
            rows = [prompt.row for prompt in others]
            undesired += target.scorers.shows_forgotten(rows, texts)
            tried, all_cut = [*tried, *others], [*all_cut, *cut]
    return scored(trial, tried, undesired, all_cut)


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
        "vectors": VECTORS,
        "learning_rate": RATE,
        "seed": target.options.seed,
    },
    missing=_too_few,
)
"""Optimised vectors in each prompt."""
