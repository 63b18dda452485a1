"""Trees of tokens (one prompt, its completions as branches) laid out as the rows of one batch.

    prompt  p p p p            one row of a packed batch, two trees and padding:
    branch 1      a a a        p p p p a a b b b | q q q c c | . .
    branch 2      b b b b      position of a branch continues its prompt's

A token attends to its own tree's prompt and its own branch, nothing else. The prefix that all
prompts of a batch share (a chat template's system prompt) begins each row once instead, and all
trees in the row attend to it. The last token of a branch is predicted but predicts nothing, so it
is no input. The plain layout gives each branch a row of its own, prompt included, and is what the
packed one is checked against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

ROLE_IDS = {"forget": 0, "mismatch": 1, "preferred": 2, "retain": 3}
PADDING, PREFIX = 0, -1
"""Values of `tree` where there is no tree, and in the shared prefix; trees count from 1."""
WIDER = 1.5
"""Factor by which rows may exceed `row_tokens` where padding is over `LITTLE_PADDING` otherwise."""
LITTLE_PADDING = 0.05
ATTENTION = 1e-3
"""Roughly the cost of attention to one more position, as a share of a token's whole cost."""


@dataclass(frozen=True)
class Branch:
    """One completion of a prompt. `weight` is that of each of its tokens; `reference_row` the
    number of its stored reference values.
    """

    role: str
    ids: tuple[int, ...]
    weight: float = 1.0
    reference_row: int = -1


@dataclass(frozen=True)
class Tree:
    """A prompt and the completions that share it."""

    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    def __len__(self) -> int:
        """Number of tokens that are inputs."""
        return len(self.prompt_ids) + sum(len(branch.ids) - 1 for branch in self.branches)


def common_prefix(texts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all texts begin with, and after which each still has one."""
    first, last = min(map(list, texts)), max(map(list, texts))
    most = min(map(len, texts)) - 1
    return first[: next((place for place in range(most) if first[place] != last[place]), most)]


def unshared(trees: Sequence[Tree]) -> list[Tree]:
    """The same branches, each with a copy of its prompt to itself."""
    return [Tree(tree.prompt_ids, (branch,)) for tree in trees for branch in tree.branches]


def assign_rows(lengths: Sequence[int], row_tokens: int, prefix: int = 0) -> list[list[int]]:
    """Assigns items to rows of about `row_tokens` tokens so that rows x width is small.

    For each number of rows the longest item goes to the emptiest row, and so on; the number with
    the smallest rows x width is taken, among those whose width is at most `row_tokens` or the
    longest item's, whichever is more (attention costs the square of the width). Where more than
    `LITTLE_PADDING` of that is padding, rows up to `WIDER` are tried, and taken if they cost less
    all the same.

    Args:
        lengths: tokens of each item, without the shared prefix.
        prefix (`int`): tokens of the shared prefix, which every row begins with.
    """

    def cost(rows: list[list[int]], width: int) -> float:
        return len(rows) * width * (1 + ATTENTION * width)

    widest = max(row_tokens, prefix + max(lengths))
    rows, width = _smallest_rectangle(lengths, widest, prefix)
    if len(rows) * width > (1 + LITTLE_PADDING) * (sum(lengths) + prefix * len(rows)):
        wider, its_width = _smallest_rectangle(lengths, round(WIDER * widest), prefix)
        if cost(wider, its_width) < cost(rows, width):
            return wider
    return rows


def _smallest_rectangle(
    lengths: Sequence[int], widest: int, prefix: int
) -> tuple[list[list[int]], int]:
    """(rows of items, their width): the smallest rectangle that is no wider than `widest`."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best: tuple[int, list[list[int]], int] | None = None
    fewest = -(-sum(lengths) // (widest - prefix))
    for count in range(max(1, fewest), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        loads = [prefix] * count
        for index in order:
            row = loads.index(min(loads))
            rows[row].append(index)
            loads[row] += lengths[index]
        size = count * max(loads)
        if max(loads) <= widest and (best is None or size < best[0]):
            best = size, rows, max(loads)
            if size <= 1.02 * (sum(lengths) + prefix):
                break
    assert best is not None, "one item a row always fits"
    return best[1:]


def make_batch(
    trees: Sequence[Tree],
    *,
    packed: bool,
    pad_id: int,
    row_tokens: int = 256,
    apart: bool = False,
) -> dict[str, Tensor]:
    """One flat batch of the trees, with the bookkeeping that finds every completion token again.

    Args:
        packed (`bool`): share prompts and their prefix, and put several trees in a row; else one
            branch a row.
        pad_id (`int`): fills the ends of rows; it may be a real token too, as nothing reads it.
        row_tokens (`int`): length of a packed row (or the longest tree's, if that is more).
        apart (`bool`): no row holds both retain completions and others; see `part`.

    Returns:
        `dict` with `input_ids`, `position_ids`, `tree`, `branch` of shape (rows, length) (`tree` is
        `PADDING` or `PREFIX` where it is no single tree's, `branch` 0 is prompt) and, one entry for
        each completion token, sorted by role: `predictor` (flat index of the position whose hidden
        state predicts it), `target`, `role` (see `ROLE_IDS`), `weight`, `sequence` (a number of its
        completion, growing with the trees and the branches in them), `row` and `offset` (its place
        in the stored reference values of its role; `row` is -1 for none).
    """
    trees = list(trees) if packed else unshared(trees)
    prefix = common_prefix([tree.prompt_ids for tree in trees]) if packed and len(trees) > 1 else []
    shared = len(prefix)
    lengths = [len(tree) - shared for tree in trees]
    rows = [[index] for index in range(len(trees))]
    if packed:
        rows = []
        for group in _groups(trees, apart=apart):
            found = assign_rows([lengths[index] for index in group], row_tokens, shared)
            rows += [[group[place] for place in row] for row in found]
    width = shared + max(sum(lengths[index] for index in row) for row in rows)
    input_ids = np.full((len(rows), width), pad_id)
    position_ids, tree_ids, branch_ids = np.zeros((3, len(rows), width), dtype=np.int64)
    input_ids[:, :shared] = prefix
    position_ids[:, :shared] = np.arange(shared)
    tree_ids[:, :shared] = PREFIX
    first_sequence = [0, *accumulate(len(tree.branches) for tree in trees)]
    pieces: list[tuple[int, int, Branch, np.ndarray]] = []
    for row, members in enumerate(rows):
        column = shared
        for number, index in enumerate(members, 1):
            tree = trees[index]
            start, length = column, len(tree.prompt_ids)
            column += length - shared
            input_ids[row, start:column] = tree.prompt_ids[shared:]
            position_ids[row, start:column] = np.arange(shared, length)
            last_of_prompt = row * width + column - 1
            for branch_number, branch in enumerate(tree.branches, 1):
                part = slice(column, column + len(branch.ids) - 1)
                input_ids[row, part] = branch.ids[:-1]
                position_ids[row, part] = np.arange(length, length + len(branch.ids) - 1)
                branch_ids[row, part] = branch_number
                predictor = row * width + np.arange(column - 1, part.stop)
                predictor[0] = last_of_prompt
                sequence = first_sequence[index] + branch_number - 1
                pieces.append((ROLE_IDS[branch.role], sequence, branch, predictor))
                column = part.stop
            tree_ids[row, start:column] = number
    pieces.sort(key=lambda piece: piece[:2])
    roles, sequences, branches, predictors = zip(*pieces, strict=True)
    sizes = [len(branch.ids) for branch in branches]

    def each(values: Iterable[float]) -> np.ndarray:
        """A value of each completion, repeated for its tokens."""
        return np.repeat(np.array(list(values)), sizes)

    arrays = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "tree": tree_ids,
        "branch": branch_ids,
        "predictor": np.concatenate(predictors),
        "target": np.concatenate([branch.ids for branch in branches]),
        "role": each(roles),
        "weight": each(float(branch.weight) for branch in branches),
        "sequence": each(sequences),
        "row": each(branch.reference_row for branch in branches),
        "offset": np.concatenate([np.arange(size) for size in sizes]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _groups(trees: Sequence[Tree], *, apart: bool) -> list[list[int]]:
    """Numbers of the trees that may share rows: those of forget prompts and those of retain rows
    where these are to be apart, else all.
    """
    if not apart:
        return [list(range(len(trees)))]
    kept = [all(branch.role == "retain" for branch in tree.branches) for tree in trees]
    groups = [
        [i for i, of_retain in enumerate(kept) if of_retain is group] for group in (False, True)
    ]
    return [group for group in groups if group]


def part(batch: dict[str, Tensor], roles: Iterable[str]) -> dict[str, Tensor] | None:
    """The batch of the completion tokens with these roles, in their order, with the rows that hold
    them; `None` where there are none. Every kept token is predicted as in the whole batch.
    """
    wanted = torch.tensor([ROLE_IDS[role] for role in roles], device=batch["role"].device)
    chosen = torch.isin(batch["role"], wanted)
    if not bool(chosen.any()):
        return None
    rows_, length = batch["tree"].shape
    row, column = batch["predictor"][chosen] // length, batch["predictor"][chosen] % length
    kept = torch.zeros(rows_, dtype=torch.bool, device=row.device).index_fill(0, row, True)
    width = int((batch["tree"][kept] != PADDING).sum(1).max())
    found = {
        name: tensor[kept, :width] if tensor.dim() == 2 else tensor[chosen]
        for name, tensor in batch.items()
    }
    found["predictor"] = (kept.cumsum(0) - 1)[row] * width + column
    return found


def visibility(
    batch: dict[str, Tensor], *, window: int | None = None, chunk: int | None = None
) -> Tensor:
    """Which position attends to which: bool (rows, 1, length, length), query by key.

    Causal, to the row's shared prefix and within one's own tree, there to the prompt and to one's
    own branch. Padding attends to itself, so that no row of the softmax is empty.

    Args:
        batch: see `make_batch`.
        window (`int`, *optional*): a sliding window: a query attends to the last `window` positions
            of its own text, itself included, wherever they are in the row.
        chunk (`int`, *optional*): attention in chunks of that many positions.
    """
    tree, branch, position = batch["tree"], batch["branch"], batch["position_ids"]
    length = tree.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=tree.device).tril()
    query, key = tree[:, :, None], tree[:, None, :]
    same_tree = ((query == key) | (key == PREFIX)) & (query != PADDING)
    same_branch = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    seen = same_tree & same_branch & causal
    if window is not None:
        seen &= position[:, :, None] - position[:, None, :] < window
    if chunk is not None:
        seen &= position[:, :, None] // chunk == position[:, None, :] // chunk
    itself = torch.eye(length, dtype=torch.bool, device=tree.device)
    return (seen | itself)[:, None]
