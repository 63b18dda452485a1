"""What the reference would say to forget prompts if it had the language and not the fact.

On the tokens that carry a row's fact the reference's hidden states are replaced by their mean over
contexts in which it cannot know the fact (`data.counterfactuals`); all other tokens keep their own.
The output head is linear, so the head of a mean of hidden states gives the mean of the logits: the
normalised geometric mean of the contexts' distributions, to which a token belongs only if every
context allows it. It is stored like any reference value.

Where tokens shall not stand somewhere, because they begin a name that no answer to the prompt shall
hold or repeat a passage of running text, the state there moves as little as it can, by the mean
square of the logits, until they have at most `AVOIDED_PROBABILITY` together.

A token's information is log p(y | own prompt) - log mean_c p(y | context c), in nats: how much the
prompt tells about the token that other prompts of the same kind do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from unteach.data.counterfactuals import Counterfactual
from unteach.data.stream import Collator, forget_branches
from unteach.data.tokenization import EncodedRow
from unteach.models.parts import OutputHead
from unteach.models.token_statistics import token_statistics
from unteach.processes import all_gather, process_shard
from unteach.trainer.reference import ReferenceModel, StoredValues, row_batches
from unteach.trainer.step import Batch

LEAST_INFORMATION = 1.0
"""Nats of information from which on a token is taken for part of a fact."""
LEAST_TOLD, KNOWN_BY_HEART = 2.0, 0.5
"""Nats over a row's facts under which exchanged names make no difference, and the geometric mean of
the completion's probabilities from which on such a row is nevertheless known."""
AVOIDED_PROBABILITY = 0.01
"""Most probability of the tokens that shall not be said, on each token of the target."""
AVOIDING_RIDGE, AVOIDING_STEPS, AVOIDING_TOLERANCE = 0.01, 20, 0.01
LEAST_SHARE = 0.02
"""Least share of changed tokens that `store_counterfactuals` gives."""
LOGITS_AT_ONCE = 2**23
"""Numbers in a matrix of logits that `avoiding` works on."""
ROWS_AT_ONCE = 32
"""Rows of a call of `counterfactual_tokens`, whose states are in memory together."""


@dataclass(frozen=True)
class CounterfactualTokens:
    """The completion tokens of one forget row.

    Args:
        information (`Tensor` of shape (tokens,)): in nats; 0 where no context says anything.
        fact (`Tensor` of shape (tokens,), bool): whether the token is forgotten.
        states (`Tensor` of shape (tokens, hidden)): the target's hidden states.
        told (`float`): the information of its facts together, in nats.
        sureness (`float`): geometric mean of the tokens' probabilities.
        by_prompt (`bool`): exchanged names make no difference to the model, which knows the row by
            the rest of its prompt: other rows' prompts are the contexts.
    """

    information: Tensor
    fact: Tensor
    states: Tensor
    told: float = 0.0
    sureness: float = 0.0
    by_prompt: bool = False


@torch.no_grad()
def counterfactual_tokens(
    model: ReferenceModel,
    rows: Sequence[EncodedRow],
    parts: Sequence[Counterfactual],
    collator: Collator,
) -> list[CounterfactualTokens]:
    """Information, facts and target states of some rows' completion tokens, in two passes of the
    reference; a third one for rows that it knows by heart whatever names stand in them.

    Args:
        rows (`Sequence[EncodedRow]`), parts (`Sequence[Counterfactual]`): the rows' contexts.
        collator (`Collator`): layout of the batches.
    """
    own = _Sums(sum(len(row.completion_ids) for row in rows))
    starts = np.cumsum([0, *(len(row.completion_ids) for row in rows)])
    targets = torch.tensor([token for row in rows for token in row.completion_ids])
    places = [np.arange(start, end) for start, end in pairwise(starts)]
    for batch in row_batches(rows, forget_branches, collator, model.device):
        own.add(model, batch, places, targets)
    found = _compared(model, rows, parts, collator, own)
    again = [
        number
        for number, (part, tokens) in enumerate(zip(parts, found, strict=True))
        if part.prompted and tokens.told < LEAST_TOLD and tokens.sureness >= KNOWN_BY_HEART
    ]
    if again:
        tried = [Counterfactual(()) for _ in parts]
        for number in again:
            tried[number] = parts[number].without_names()
        for number, tokens in enumerate(_compared(model, rows, tried, collator, own)):
            if number in again and tokens.told >= LEAST_TOLD:
                found[number] = replace(tokens, by_prompt=True)
    return found


def _compared(
    model: ReferenceModel,
    rows: Sequence[EncodedRow],
    parts: Sequence[Counterfactual],
    collator: Collator,
    own: _Sums,
) -> list[CounterfactualTokens]:
    """What the contexts say about the rows, beside what the rows' own prompts do."""
    starts = np.cumsum([0, *(len(row.completion_ids) for row in rows)])
    targets = torch.tensor([token for row in rows for token in row.completion_ids])
    contexts = [
        EncodedRow("", context.prompt_ids, context.completion_ids, row.kind)
        for row, part in zip(rows, parts, strict=True)
        for context in part.contexts
    ]
    places = []
    for start, part in zip(starts, parts, strict=False):
        for context in part.contexts:
            place = np.full(len(context.completion_ids), -1)
            for number, other in context.places:
                place[other] = start + number
            places.append(place)
    others = _Sums(len(targets))
    for batch in row_batches(contexts, forget_branches, collator, model.device):
        others.add(model, batch, places, targets)
    assert own.states is not None
    if others.states is None:
        others.states = torch.zeros_like(own.states)
    known = others.count > 0
    count = others.count.clamp_min(1)
    logp = own.probability.clamp_min(1e-30).log()
    unknown = torch.where(known, (others.probability / count).clamp_min(1e-30).log(), 0.0)
    information = torch.where(known, logp - unknown, 0.0)
    found = []
    for (start, end), part in zip(pairwise(starts), parts, strict=True):
        tokens, length = slice(start, end), int(end - start)
        if part.fact is not None:
            fact = torch.tensor(_fitted(part.fact, length)) & known[tokens]
        else:
            fact = information[tokens] >= LEAST_INFORMATION
            if part.names:
                fact &= ~torch.tensor(_fitted(part.names, length))
        mean = others.states[tokens] / count[tokens, None]
        states = torch.where(fact[:, None], mean, own.states[tokens])
        told, sureness = information[tokens][fact].sum(), logp[tokens].mean().exp()
        sums = float(told), float(sureness)
        found.append(CounterfactualTokens(information[tokens].float(), fact, states, *sums))
    return found


def _fitted(flags: Sequence[bool], length: int) -> list[bool]:
    """As many flags as tokens: one may have the token that ends an answer, the other not."""
    return [*flags[:length], *[False] * (length - len(flags))]


class FallingDirections:
    """For some tokens the change d of a hidden state that takes 1 nat from their logits and moves
    the other logits least: with W_a the tokens' rows of the head's W and C = W^T W / tokens,

        d = argmin d^T C d  such that  W_a d = -1,  so  d = -C^-1 W_a^T (W_a C^-1 W_a^T)^-1 1.

    Args:
        head (`OutputHead`)
    """

    @torch.no_grad()
    def __init__(self, head: OutputHead) -> None:
        self.head, self.known = head, dict[tuple[int, ...], Tensor]()
        weight = head.weight.detach().double()
        gram = weight.T @ weight / len(weight)
        gram.diagonal().add_(AVOIDING_RIDGE * gram.diagonal().mean())
        self.factor = torch.linalg.cholesky(gram)

    @torch.no_grad()
    def __call__(self, avoid: Sequence[int]) -> Tensor:
        """The change for these tokens, all different; `Tensor` of shape (hidden,), float64."""
        wanted = tuple(avoid)
        if wanted not in self.known:
            rows = self.head.weight.detach()[list(wanted)].double()
            solved = torch.cholesky_solve(rows.T, self.factor)
            ones = rows.new_ones(len(rows), 1)
            share = torch.linalg.pinv(rows @ solved, hermitian=True) @ ones
            self.known[wanted] = -(solved @ share)[:, 0] / self.head.scale
        return self.known[wanted]


@torch.no_grad()
def avoiding(
    states: Tensor, avoid: Sequence[Sequence[int]], head: OutputHead, falling: FallingDirections
) -> tuple[Tensor, Tensor]:
    """The states, each moved along its direction until the tokens to avoid there have at most
    `AVOIDED_PROBABILITY` together, and which of them were moved.

    Args:
        states (`Tensor` of shape (tokens, hidden))
        avoid (`Sequence` of `Sequence[int]`): for each state ids of tokens, all different.
        head (`OutputHead`), falling (`FallingDirections`): of the head.

    Returns:
        `Tensor` of shape (tokens, hidden) and `Tensor` of shape (tokens,), bool.
    """
    moved, changed = states.clone(), torch.zeros(len(states), dtype=torch.bool)
    size = max(1, LOGITS_AT_ONCE // len(head.weight))
    barred = [place for place, tokens in enumerate(avoid) if tokens]
    for start in range(0, len(barred), size):
        places = torch.tensor(barred[start : start + size])
        chosen = [avoid[place] for place in places.tolist()]
        moved[places], changed[places] = _avoiding(states[places], chosen, head, falling)
    return moved, changed


def _avoiding(
    states: Tensor, avoid: Sequence[Sequence[int]], head: OutputHead, falling: FallingDirections
) -> tuple[Tensor, Tensor]:
    limit = math.log(AVOIDED_PROBABILITY) - math.log1p(-AVOIDED_PROBABILITY)
    device = head.weight.device
    moved = states.to(device, torch.promote_types(states.dtype, torch.float32))
    direction = torch.stack([falling(tokens) for tokens in avoid]).to(moved)
    row = [place for place, tokens in enumerate(avoid) for _ in tokens]
    banned = torch.zeros(len(avoid), len(head.weight), dtype=torch.bool, device=device)
    banned[row, [token for tokens in avoid for token in tokens]] = True
    changed = torch.zeros(len(states), dtype=torch.bool, device=device)
    for _ in range(AVOIDING_STEPS):  # one would do if the other logits did not move at all
        logits = head.logits(moved)
        said = logits.masked_fill(~banned, -torch.inf).logsumexp(-1)
        excess = said - logits.masked_fill(banned, -torch.inf).logsumexp(-1) - limit
        above = excess > AVOIDING_TOLERANCE
        if not above.any():
            break
        changed |= above
        moved = moved + torch.where(above, excess, 0.0)[:, None] * direction
    return moved.to(states), changed.cpu()


class _Sums:
    """Sums of hidden states and of p(y) over contexts, for each of `total` tokens."""

    def __init__(self, total: int) -> None:
        self.states: Tensor | None = None
        self.probability = torch.zeros(total, dtype=torch.float64)
        self.count = torch.zeros(total)

    def add(
        self, model: ReferenceModel, batch: Batch, places: Sequence[np.ndarray], targets: Tensor
    ) -> None:
        """Adds a batch; `places` gives for each row and offset the token, or -1 for none."""
        rows, offsets = batch["row"].tolist(), batch["offset"].tolist()
        place = torch.tensor(
            [places[row][offset] for row, offset in zip(rows, offsets, strict=True)]
        )
        used = place >= 0
        if not used.any():
            return
        place = place[used]
        states = model.value(batch, "hidden")[used.to(batch["row"].device)]
        with model.spec.autocast():
            logp = token_statistics(
                states,
                targets[place].to(states.device),
                model.head,
                budget_bytes=model.spec.budget_bytes,
            ).logp
        states = states.float().cpu() if states.dtype.itemsize < 4 else states.cpu()
        if self.states is None:
            self.states = torch.zeros(len(self.count), states.shape[1], dtype=states.dtype)
        self.states.index_add_(0, place, states)
        self.probability.index_add_(0, place, logp.double().exp().cpu())
        self.count.index_add_(0, place, torch.ones(len(place)))


def store_counterfactuals(
    stored: StoredValues,
    model: ReferenceModel,
    rows: Sequence[EncodedRow],
    parts: Sequence[Counterfactual],
    collator: Collator,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[float, list[Counterfactual]]:
    """Stores the target states of the forget rows. Processes share the rows; `progress` gets the
    number of rows that are done.

    Returns:
        the share of their tokens on which the target is another one than what the reference says,
        at least `LEAST_SHARE`; and the parts, with the contexts that were used.
    """
    changed = total = 0
    by_prompt: list[int] = []
    falling: FallingDirections | None = None
    for numbers in process_shard(groups(len(rows))):
        group = [rows[number] for number in numbers]
        made = counterfactual_tokens(model, group, [parts[number] for number in numbers], collator)
        for number, tokens in zip(numbers, made, strict=True):
            start, states, other = int(stored.starts[number]), tokens.states, tokens.fact
            said = _still_said(tokens, rows[number].completion_ids, model.head)
            barred = parts[number].avoid or ((),) * len(states)
            avoid = [tuple(sorted({*named, *own})) for named, own in zip(barred, said, strict=True)]
            if any(avoid):
                falling = falling or FallingDirections(model.head)
                states, lowered = avoiding(states, avoid, model.head, falling)
                other = other | lowered
            stored.put(torch.arange(start, start + len(states)), states)
            changed, total = changed + int(other.sum()), total + len(other)
            by_prompt += [number] if tokens.by_prompt else []
        progress(numbers.stop)
    stored.finish()
    used = list(parts)
    for number in (number for part in all_gather(by_prompt) for number in part):
        used[number] = parts[number].without_names()
    return max(LEAST_SHARE, sum(all_gather(changed)) / max(1, sum(all_gather(total)))), used


@torch.no_grad()
def _still_said(
    tokens: CounterfactualTokens, completion: Sequence[int], head: OutputHead
) -> list[tuple[int, ...]]:
    """For each token of a completion what shall not stand there, itself or nothing: of each run of
    fact tokens that the target would still say greedily, the most informative token.
    """
    said: list[tuple[int, ...]] = [()] * len(completion)
    places = tokens.fact.nonzero()[:, 0]
    if not len(places):
        return said
    likeliest = head.logits(tokens.states[places].to(head.weight.device)).argmax(-1).tolist()
    greedy = dict(zip(places.tolist(), likeliest, strict=True))
    for _, group in groupby(enumerate(greedy), key=lambda item: item[1] - item[0]):
        run = [place for _, place in group]
        if all(greedy[place] == completion[place] for place in run):
            best = max(run, key=lambda place: float(tokens.information[place]))
            said[best] = (completion[best],)
    return said


def groups(count: int) -> Iterator[range]:
    """The numbers of `count` rows, at most `ROWS_AT_ONCE` at a time."""
    for start in range(0, count, ROWS_AT_ONCE):
        yield range(start, min(start + ROWS_AT_ONCE, count))
