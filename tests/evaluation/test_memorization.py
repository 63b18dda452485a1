"""Exact memorisation and extraction strength, by hand and against a loop of one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny_models import tiny_model
from unteach.evaluation.memorization import exact_memorization, extraction_strength, greedy_matches


@pytest.mark.parametrize(
    ("correct", "exact", "strength"),
    [
        ([True], 1.0, 1.0),
        ([False], 0.0, 0.0),
        ([True, True, True, True], 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, False, True, True], 0.75, 0.5),
        ([True, True, True, False], 0.75, 0.0),
        ([False, False, False], 0.0, 0.0),
    ],
)
def test_by_hand(correct, exact, strength):
    """A wrong one-token answer has strength 0, which a known implementation gives 1.0."""
    assert (exact_memorization(correct), extraction_strength(np.array(correct))) == (exact, strength)


def test_extraction_strength_is_its_definition():
    for number in range(64):
        correct = [bool(number >> bit & 1) for bit in range(6)]
        smallest = next(k for k in range(7) if all(correct[k:]))
        assert extraction_strength(correct) == pytest.approx(1 - smallest / 6)


@pytest.mark.parametrize("bad", [[], [[True]], [1.0, 0.0], [1, 0]])
def test_anything_but_a_row_of_booleans_is_refused(bad):
    with pytest.raises(ValueError, match="correct"):
        exact_memorization(bad)
    with pytest.raises(ValueError, match="correct"):
        extraction_strength(bad)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma3"])
def test_batches_of_ragged_rows_match_one_position_at_a_time(family):
    model = tiny_model(family).double()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 60, (length,), generator=generator).tolist() for length in (3, 9, 5, 12, 4)]
    prompts, completions = [row[:2] for row in rows], [row[2:] for row in rows]
    for place in (1, 3):  # some tokens that the model does choose
        with torch.no_grad():
            completions[place][0] = int(model(torch.tensor([prompts[place]])).logits[0, -1].argmax())
    completions[2] = []
    found = greedy_matches(model, prompts, completions, tokens_per_batch=24)
    assert found[2] is None
    for prompt, completion, correct in zip(prompts, completions, found, strict=True):
        wanted = []
        for position in range(len(completion)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion[:position]])).logits[0, -1]
            wanted.append(int(logits.argmax()) == completion[position])
        assert completion == [] or correct.tolist() == wanted
    assert found[1][0] and found[3][0]
