"""Packed batches hold what plain ones hold."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import FAMILIES, tiny_model
from unteach import models
from unteach.data.packing import (
    PADDING,
    ROLE_IDS,
    WIDER,
    Branch,
    Tree,
    assign_rows,
    common_prefix,
    make_batch,
    part,
    unshared,
    visibility,
)
from unteach.models.token_statistics import token_statistics

ids = st.lists(st.integers(1, 500), min_size=1, max_size=9).map(tuple)
branches = st.lists(
    st.builds(Branch, st.sampled_from(["forget", "mismatch", "retain"]), ids),
    min_size=1,
    max_size=7,
).map(tuple)
some_trees = st.lists(st.builds(Tree, ids, branches), min_size=1, max_size=5)
trees = st.builds(
    lambda shared_prefix, made: [
        Tree((*shared_prefix, *tree.prompt_ids), tree.branches) for tree in made
    ],
    ids | st.just(()),
    some_trees,
)  # of prompts with a prefix in common, and without


MASK_FIELDS = ("tree", "branch", "position_ids")


def test_the_mask_of_a_prompt_with_two_completions():
    """p p a a b .     queries down, keys across; a sees p and a, b sees p and b, padding sees
    itself.

    The completions are a a x and b y: their last tokens are predicted and are no input.

    p  x . . . . .
    p  x x . . . .
    a  x x x . . .
    a  x x x x . .
    b  x x . . x .
    .  . . . . . x
    """
    batch = make_batch(
        [Tree((5, 6), (Branch("forget", (7, 8, 3)), Branch("mismatch", (9, 4))))],
        packed=True,
        pad_id=0,
    )
    padded = {name: torch.nn.functional.pad(batch[name], (0, 1)) for name in MASK_FIELDS}
    wanted = ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", ".....x"]
    seen = visibility(padded)[0, 0]
    assert ["".join("x" if cell else "." for cell in row) for row in seen.tolist()] == wanted
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert batch["predictor"].tolist() == [1, 2, 3, 1, 4] and batch["target"].tolist() == [
        7,
        8,
        3,
        9,
        4,
    ]


def test_the_mask_of_two_prompts_with_a_prefix_in_common():
    """o o q b b p a .     o: what both prompts begin with; b sees o and q, a sees o and p, padding
    sees itself.

    o  x . . . . . . .
    o  x x . . . . . .
    q  x x x . . . . .
    b  x x x x . . . .
    b  x x x x x . . .
    p  x x . . . x . .
    a  x x . . . x x .
    .  . . . . . . . x
    """
    two = [
        Tree((5, 6, 7), (Branch("forget", (8, 3)),)),
        Tree((5, 6, 9), (Branch("retain", (4, 2, 3)),)),
    ]
    batch = make_batch(two, packed=True, pad_id=0, row_tokens=16)
    assert batch["input_ids"].tolist() == [[5, 6, 9, 4, 2, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch["predictor"].tolist() == [5, 6, 2, 3, 4] and batch["target"].tolist() == [
        8,
        3,
        4,
        2,
        3,
    ]
    padded = {name: torch.nn.functional.pad(batch[name], (0, 1)) for name in MASK_FIELDS}
    wanted = [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xxxxx...",
        "xx...x..",
        "xx...xx.",
        ".......x",
    ]
    seen = visibility(padded)[0, 0]
    assert ["".join("x" if cell else "." for cell in row) for row in seen.tolist()] == wanted


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"window": 2}, ["x.....", "xx....", ".xx...", "..xx..", ".x..x.", "....xx"]),
        ({"chunk": 2}, ["x.....", "xx....", "..x...", "..xx..", "....x.", "....xx"]),
    ],
    ids=str,
)
def test_limits_of_attention_count_positions_of_the_text_and_not_places_in_the_row(limits, wanted):
    """p p a a b b: b continues p at position 2, whatever stands between them."""
    tree = Tree((5, 6), (Branch("forget", (7, 8, 3)), Branch("mismatch", (9, 4, 3))))
    batch = make_batch([tree], packed=True, pad_id=0)
    seen = visibility(batch, **limits)[0, 0]
    assert ["".join("x" if cell else "." for cell in row) for row in seen.tolist()] == wanted


@settings(max_examples=60, deadline=None)
@given(trees, st.booleans(), st.integers(8, 64))
def test_every_completion_token_is_predicted_once_from_the_token_before_it(
    some, packed, row_tokens
):
    batch = make_batch(some, packed=packed, pad_id=0, row_tokens=row_tokens)
    flat = batch["input_ids"].flatten()
    found = sorted(
        zip(
            flat[batch["predictor"]].tolist(),
            batch["target"].tolist(),
            batch["role"].tolist(),
            strict=True,
        )
    )
    wanted = []
    for tree in some:
        for branch in tree.branches:
            before = (tree.prompt_ids[-1], *branch.ids[:-1])
            wanted += [
                (left, right, ROLE_IDS[branch.role])
                for left, right in zip(before, branch.ids, strict=True)
            ]
    assert found == sorted(wanted)
    used = sum(map(len, some if packed else unshared(some)))
    if packed and len(some) > 1:  # the shared prefix stands once in each row, not once in each tree
        used -= len(common_prefix([tree.prompt_ids for tree in some])) * (
            len(some) - len(batch["input_ids"])
        )
    assert int((batch["tree"] != PADDING).sum()) == used


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=30),
    st.integers(1, 300),
    st.just(0) | st.integers(1, 300),
)
def test_rows_hold_every_item_once_and_no_more_than_they_may(lengths, row_tokens, shared_prefix):
    rows = assign_rows(lengths, row_tokens, shared_prefix)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    widest = max(row_tokens, *(shared_prefix + length for length in lengths))
    assert all(
        shared_prefix + sum(lengths[index] for index in row) <= round(WIDER * widest)
        for row in rows
    )


def test_rows_are_wider_than_asked_where_that_saves_padding():
    """Two prompts with six completions and two with one: four rows would be a fifth of padding."""
    rows = assign_rows([266, 266, 151, 151], 256)
    assert sorted(map(sorted, rows)) == [[0], [1], [2, 3]]
    assert len(assign_rows([100, 100, 100, 100], 200)) == 2  # no padding, so no wider
    assert len(assign_rows([300, 10], 256)) == 1


@settings(deadline=None, max_examples=50)
@given(trees=trees, packed=st.booleans(), apart=st.booleans())
def test_a_part_has_the_tokens_of_its_roles_and_their_contexts(trees, packed, apart):
    batch = make_batch(trees, packed=packed, pad_id=0, row_tokens=24, apart=apart)
    found = 0
    for roles in (["forget", "mismatch"], ["retain"]):
        own = part(batch, roles)
        chosen = torch.isin(batch["role"], torch.tensor([ROLE_IDS[role] for role in roles]))
        assert (own is None) == (not chosen.any())
        if own is None:
            continue
        found += len(own["target"])
        for name in ("target", "role", "weight", "sequence", "row", "offset"):
            assert own[name].tolist() == batch[name][chosen].tolist()
        contexts = [
            context(whole, place)
            for whole, place in ((batch, batch["predictor"][chosen]), (own, own["predictor"]))
        ]
        assert contexts[0] == contexts[1]
    assert found == len(batch["target"])


def context(batch: dict[str, torch.Tensor], places: torch.Tensor) -> list[list[tuple[int, int]]]:
    """(token, position) of all that each of these flat positions attends to."""
    seen, length = visibility(batch)[:, 0], batch["tree"].shape[1]
    pairs = torch.stack([batch["input_ids"], batch["position_ids"]], -1)
    rows = [(int(place) // length, int(place) % length) for place in places]
    return [[tuple(pair) for pair in pairs[r][seen[r, c]].tolist()] for r, c in rows]


def test_rows_that_are_apart_hold_no_retain_completion_beside_another():
    made = [
        Tree((1, 2, number), (Branch("retain" if number % 2 else "forget", (5, 6)),))
        for number in range(9)
    ]
    for apart in (False, True):
        batch = make_batch(made, packed=True, pad_id=0, row_tokens=64, apart=apart)
        length = batch["tree"].shape[1]
        rows = [set((batch["predictor"][batch["role"] == i] // length).tolist()) for i in (0, 3)]
        assert bool(rows[0] & rows[1]) is not apart


def random_trees(seed: int, shared_prefix: tuple[int, ...] = ()) -> list[Tree]:
    """Three prompts with three completions, three with one; all begin with `shared_prefix`."""
    generator = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(1, 500) for _ in range(generator.randint(low, high)))

    made = [
        Tree(
            (*shared_prefix, *some(1, 9)),
            (
                Branch("forget", some(1, 6)),
                *(Branch("mismatch", some(1, 6), 0.5) for _ in range(2)),
            ),
        )
        for _ in range(3)
    ]
    return [
        *made,
        *(
            Tree((*shared_prefix, *some(1, 5)), (Branch("retain", some(1, 7), 1.0, i),))
            for i in range(3)
        ),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared_prefix", [(), (9, 300, 4, 4, 77)], ids=["no prefix", "a prefix"])
def test_packed_and_plain_rows_give_the_same_states_and_gradients(family, shared_prefix):
    model = tiny_model(family, dtype=torch.float64)
    results = []
    for packed in (True, False):
        batch = make_batch(random_trees(1, shared_prefix), packed=packed, pad_id=0, row_tokens=24)
        hidden = models.predicting_states(model, batch, packed=packed)
        logp = token_statistics(hidden, batch["target"], models.output_head(model)).logp
        model.zero_grad()
        (logp * batch["weight"]).sum().backward()
        results.append(
            (
                logp.detach(),
                {
                    name: p.grad.clone()
                    for name, p in model.named_parameters()
                    if p.grad is not None
                },
            )
        )
    (logp, gradients), (plain_logp, plain_gradients) = results
    torch.testing.assert_close(logp, plain_logp, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-9, atol=1e-9)
