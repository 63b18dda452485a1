"""What the reference would say to forget prompts if it had the language and not the fact.

On the tokens that carry a row's fact the reference's hidden states are replaced by their mean over
contexts in which it cannot know the fact (`data.counterfactuals`); all other tokens keep their own.
The output head is linear, so the head of a mean of hidden states gives the mean of the logits: the
normalised geometric mean of the contexts' distributions, to which a token belongs only if every
context allows it. It is stored like any reference value.

Where a row has names that no answer to its prompt shall hold, the states move on every token as
little as they can, by the mean square of the logits, until the probability that a name begins there
is at most `AVOIDED_PROBABILITY`.

A token's information is log p(y | own prompt) - log mean_c p(y | context c), in nats: how much the
prompt tells about the token that other prompts of the same kind do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
AVOIDED_PROBABILITY = 0.01
"""Most probability of a name that shall not be said, on each token of the target."""
AVOIDING_RIDGE, AVOIDING_STEPS, AVOIDING_TOLERANCE = 0.01, 20, 0.01
LEAST_SHARE = 0.02
"""Least result of `store_counterfactuals`."""
ROWS_AT_ONCE = 32
"""Rows of a call of `counterfactual_tokens`, whose states are in memory together."""


@dataclass(frozen=True)
class CounterfactualTokens:
    """The completion tokens of one forget row.

    Args:
        information (`Tensor` of shape (tokens,)): in nats; 0 where no context says anything.
        fact (`Tensor` of shape (tokens,), bool): whether the token is forgotten.
        states (`Tensor` of shape (tokens, hidden)): the target's hidden states.
    """

    information: Tensor
    fact: Tensor
    states: Tensor


@torch.no_grad()
def counterfactual_tokens(
    model: ReferenceModel,
    rows: Sequence[EncodedRow],
    parts: Sequence[Counterfactual],
    collator: Collator,
) -> list[CounterfactualTokens]:
    """Information, facts and target states of some rows' completion tokens, in two passes of the
    reference.

    Args:
        rows (`Sequence[EncodedRow]`), parts (`Sequence[Counterfactual]`): the rows' contexts.
        collator (`Collator`): layout of the batches.
    """
    lengths = [len(row.completion_ids) for row in rows]
    starts = np.cumsum([0, *lengths])
    targets = torch.tensor([token for row in rows for token in row.completion_ids])
    own = _Sums(len(targets))
    places = [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=False)]
    for batch in row_batches(rows, forget_branches, collator, model.device):
        own.add(model, batch, places, targets)
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
    unknown = torch.where(known, (others.probability / count).clamp_min(1e-30).log(), 0.0)
    information = torch.where(known, own.probability.clamp_min(1e-30).log() - unknown, 0.0)
    found = []
    for start, length, part in zip(starts, lengths, parts, strict=False):
        tokens = slice(start, start + length)
        if part.fact is not None:
            fact = torch.tensor(_fitted(part.fact, length)) & known[tokens]
        else:
            fact = information[tokens] >= LEAST_INFORMATION
            if part.names:
                fact &= ~torch.tensor(_fitted(part.names, length))
        mean = others.states[tokens] / count[tokens, None]
        states = torch.where(fact[:, None], mean, own.states[tokens])
        found.append(CounterfactualTokens(information[tokens].float(), fact, states))
    return found


def _fitted(flags: Sequence[bool], length: int) -> list[bool]:
    """As many flags as tokens: one may have the token that ends an answer, the other not."""
    return [*flags[:length], *[False] * (length - len(flags))]


@torch.no_grad()
def falling_direction(avoid: Sequence[int], head: OutputHead) -> Tensor:
    """The change d of a hidden state that takes 1 nat from the logit of some tokens and moves the
    other logits least: with W_a the tokens' rows of the head's W and C = W^T W / tokens,

        d = argmin d^T C d  such that  W_a d = -1,  so  d = -C^-1 W_a^T (W_a C^-1 W_a^T)^-1 1.

    Args:
        avoid (`Sequence[int]`): ids of tokens, all different.
        head (`OutputHead`)

    Returns:
        `Tensor` of shape (hidden,), float64.
    """
    weight = head.weight.detach().double()
    gram = weight.T @ weight / len(weight)
    gram.diagonal().add_(AVOIDING_RIDGE * gram.diagonal().mean())
    rows = weight[list(avoid)]
    solved = torch.linalg.solve(gram, rows.T)
    ones = rows.new_ones(len(rows), 1)
    share = torch.linalg.pinv(rows @ solved, hermitian=True) @ ones
    direction: Tensor = -(solved @ share)[:, 0] / head.scale
    return direction


@torch.no_grad()
def avoiding(
    states: Tensor, avoid: Sequence[int], head: OutputHead, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """The states, moved along a direction until the tokens to avoid have at most
    `AVOIDED_PROBABILITY` together, and which of them were moved.

    Args:
        states (`Tensor` of shape (tokens, hidden)), avoid (`Sequence[int]`), head (`OutputHead`)
        direction (`Tensor` of shape (hidden,)): of `falling_direction`.

    Returns:
        `Tensor` of shape (tokens, hidden) and `Tensor` of shape (tokens,), bool.
    """
    limit = math.log(AVOIDED_PROBABILITY) - math.log1p(-AVOIDED_PROBABILITY)
    device, chosen = head.weight.device, list(avoid)
    moved = states.to(device, torch.promote_types(states.dtype, torch.float32))
    changed = torch.zeros(len(states), dtype=torch.bool, device=device)
    for _ in range(AVOIDING_STEPS):  # one would do if the other logits did not move at all
        logits = head.logits(moved)
        said = logits[:, chosen].logsumexp(-1)
        logits[:, chosen] = -torch.inf
        excess = said - logits.logsumexp(-1) - limit
        above = excess > AVOIDING_TOLERANCE
        if not above.any():
            break
        changed |= above
        moved = moved + torch.where(above, excess, 0.0)[:, None] * direction.to(moved)
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
) -> float:
    """Stores the target states of the forget rows. Processes share the rows; `progress` gets the
    number of rows that are done.

    Returns:
        the share of their tokens on which the target is another one than what the reference says,
        at least `LEAST_SHARE`.
    """
    changed = total = 0
    falling: dict[tuple[int, ...], Tensor] = {}
    for numbers in process_shard(groups(len(rows))):
        group = [rows[number] for number in numbers]
        made = counterfactual_tokens(model, group, [parts[number] for number in numbers], collator)
        for number, tokens in zip(numbers, made, strict=True):
            start, avoid = int(stored.starts[number]), parts[number].avoid
            states, other = tokens.states, tokens.fact
            if avoid:
                if avoid not in falling:
                    falling[avoid] = falling_direction(avoid, model.head)
                states, lowered = avoiding(states, avoid, model.head, falling[avoid])
                other = other | lowered
            stored.put(torch.arange(start, start + len(states)), states)
            changed, total = changed + int(other.sum()), total + len(other)
        progress(numbers.stop)
    stored.finish()
    return max(LEAST_SHARE, sum(all_gather(changed)) / max(1, sum(all_gather(total))))


def groups(count: int) -> Iterator[range]:
    """The numbers of `count` rows, at most `ROWS_AT_ONCE` at a time."""
    for start in range(0, count, ROWS_AT_ONCE):
        yield range(start, min(start + ROWS_AT_ONCE, count))
