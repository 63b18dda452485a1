"""Trees of tokens (one prompt, its completions as branches) laid out as the rows of one batch.

    prompt  p p p p            one row of a packed batch, two trees and padding:
    branch 1      a a a        p p p p a a a b b b b | q q q c c c | . .
    branch 2      b b b b      position of a branch continues its prompt's

A token sees its own tree's prompt and its own branch, nothing else. The plain layout gives each branch a row of its own, prompt included,
and is what the packed one is checked against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

ROLE_IDS = {"forget": 0, "mismatch": 1, "retain": 2, "preferred": 3}


@dataclass(frozen=True)
class Branch:
    """One completion of a prompt. `weight` is that of each of its tokens; `retain_row` names the stored reference values."""

    role: str
    ids: tuple[int, ...]
    weight: float = 1.0
    retain_row: int = -1


@dataclass(frozen=True)
class Tree:
    """A prompt and the completions that share it."""

    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(len(branch.ids) for branch in self.branches)


def unshared(trees: Sequence[Tree]) -> list[Tree]:
    """The same branches, each with a copy of its prompt to itself."""
    return [Tree(tree.prompt_ids, (branch,)) for tree in trees for branch in tree.branches]


def assign_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Which items go together in rows of about `row_tokens`, so that the padded rectangle is as small as it can be had.

    For each number of rows the longest item goes to the emptiest row, and so on; the number with the smallest rows x width is taken, among
    those whose width is at most `row_tokens` or the longest item's, whichever is more (attention costs the square of the width).
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    widest = max(row_tokens, max(lengths))
    best: tuple[int, list[list[int]]] | None = None
    fewest = -(-sum(lengths) // widest)
    for count in range(max(1, fewest), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        for index in order:
            row = loads.index(min(loads))
            rows[row].append(index)
            loads[row] += lengths[index]
        size = count * max(loads)
        if max(loads) <= widest and (best is None or size < best[0]):
            best = size, rows
            if size <= 1.02 * sum(lengths):
                break
    assert best is not None, "one item a row always fits"
    return best[1]


def make_batch(trees: Sequence[Tree], *, packed: bool, pad_id: int, row_tokens: int = 256) -> dict[str, Tensor]:
    """One flat batch of the trees, with the bookkeeping that finds every completion token again.

    Args:
        trees (`Sequence[Tree]`)
        packed (`bool`): share prompts and put several trees in a row; else one branch a row.
        pad_id (`int`): what fills the ends of rows; it may be a real token too, nothing is read off it.
        row_tokens (`int`): length of a packed row (or the longest tree's, if that is more).

    Returns:
        `dict` with `input_ids`, `position_ids`, `tree`, `branch` of shape (rows, length) (`tree` 0 is padding, `branch` 0 is prompt) and,
        one entry for each completion token, sorted by role: `predictor` (flat index of the position whose hidden state predicts it),
        `target`, `role` (0 forget, 1 mismatch, 2 retain, 3 preferred), `weight`, `sequence` (a number of its completion, growing with the
        trees and the branches in them), `row` and `offset` (its place in the stored reference values of its role; `row` is -1 for none);
        for the retain tokens among them `retain_row` and `retain_offset`.
    """
    trees = list(trees) if packed else unshared(trees)
    rows = assign_rows([len(tree) for tree in trees], row_tokens) if packed else [[i] for i in range(len(trees))]
    width = max(sum(len(trees[index]) for index in row) for row in rows)
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    tree_ids = torch.zeros(shape, dtype=torch.long)
    branch_ids = torch.zeros(shape, dtype=torch.long)
    tokens: list[tuple[int, int, int, int, float, int, int, int]] = []
    branches_before = [0, *accumulate(len(tree.branches) for tree in trees)]
    for row, members in enumerate(rows):
        column = 0
        for number, index in enumerate(members, 1):
            tree = trees[index]
            start, length = column, len(tree.prompt_ids)
            input_ids[row, start : start + length] = torch.tensor(tree.prompt_ids)
            position_ids[row, start : start + length] = torch.arange(length)
            column += length
            for branch_number, branch in enumerate(tree.branches, 1):
                size = len(branch.ids)
                input_ids[row, column : column + size] = torch.tensor(branch.ids)
                position_ids[row, column : column + size] = torch.arange(length, length + size)
                branch_ids[row, column : column + size] = branch_number
                for offset, target in enumerate(branch.ids):
                    before = start + length - 1 if offset == 0 else column + offset - 1
                    place = (row * width + before, target, branch.weight, branch.retain_row, offset)
                    tokens.append((ROLE_IDS[branch.role], index, *place, branches_before[index] + branch_number - 1))
                column += size
            tree_ids[row, start:column] = number
    tokens.sort(key=lambda token: (token[0], token[1]))
    role, _, predictor, target_ids, weight, retain_row, retain_offset, sequence = zip(*tokens, strict=True)
    roles = torch.tensor(role)
    retain = roles == ROLE_IDS["retain"]
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "tree": tree_ids,
        "branch": branch_ids,
        "predictor": torch.tensor(predictor),
        "target": torch.tensor(target_ids),
        "role": roles,
        "weight": torch.tensor(weight, dtype=torch.float64),
        "sequence": torch.tensor(sequence),
        "row": torch.tensor(retain_row),
        "offset": torch.tensor(retain_offset),
        "retain_row": torch.tensor(retain_row)[retain],
        "retain_offset": torch.tensor(retain_offset)[retain],
    }


def visibility(tree: Tensor, branch: Tensor) -> Tensor:
    """Which position may look at which: bool (rows, 1, length, length), query by key.

    Causal, within one tree, at the prompt or at one's own branch. Padding sees itself, so that no row of the softmax is empty.
    """
    length = tree.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=tree.device).tril()
    same_tree = (tree[:, :, None] == tree[:, None, :]) & (tree[:, :, None] > 0)
    same_branch = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    itself = torch.eye(length, dtype=torch.bool, device=tree.device)
    return ((same_tree & same_branch & causal) | itself)[:, None]
