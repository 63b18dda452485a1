"""Stored values are the live ones, and all of them come from one pass over the rows."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tiny_models import tiny_model
from tiny_trainers import first_batch, make_trainer
from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.methods import METHODS, Hooks
from unteach.trainer.reference import (
    LiveReference,
    ReferenceModel,
    StoredReference,
    StoredValues,
    reference_key,
    store,
)
from unteach.trainer.step import StepSpec

ROWS = [((1, 2, 3), (4, 5)), ((6,), (7,)), ((8, 9), (10, 11, 12, 13))]
LENGTHS = [len(completion) for _, completion in ROWS]


def batch_of(*indices: int) -> dict[str, torch.Tensor]:
    trees = [Tree(ROWS[i][0], (Branch("retain", ROWS[i][1], 1.0, i),)) for i in indices]
    return make_batch(trees, packed=True, pad_id=0)


def states_of(model, batches, **stored_as) -> StoredValues:
    """The final hidden states of the rows, stored."""
    values = StoredValues("retain", LENGTHS, **stored_as)
    store([values], batches, lambda batch: models.predicting_states(model, batch, packed=True))
    return values


@pytest.mark.parametrize("on_disk", [True, False])
def test_stored_states_equal_live_ones_in_any_batch(on_disk, tmp_path):
    model = tiny_model(dtype=torch.float64)
    folder = tmp_path / "states" if on_disk else None
    batches = [batch_of(2, 0), batch_of(1)]
    stored = StoredReference({"retain": states_of(model, batches, folder=folder, key="k")})
    method = METHODS["ga"]
    spec = StepSpec(method, Hooks(method, None, None, None), True, 2**20, nullcontext)
    live = LiveReference(ReferenceModel(model, spec, "live"), {"retain": "hidden"})
    for indices in ((0, 1, 2), (2, 1), (1,), (0, 0)):
        batch = batch_of(*indices)
        torch.testing.assert_close(stored.at(batch), live.at(batch), rtol=1e-9, atol=1e-9)


def test_states_on_disk_are_used_again_and_only_for_the_same_key(tmp_path):
    model = tiny_model()
    first = states_of(model, [batch_of(0, 1, 2)], folder=tmp_path, key="one")
    again = states_of(model, [], folder=tmp_path, key="one")
    every = torch.arange(7)
    assert torch.equal(first.values[every], again.values[every])
    with pytest.raises(ValueError, match="no retain rows"):
        states_of(model, [], folder=tmp_path, key="another")


def test_the_stored_head_does_not_follow_training(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.prepare_references()
    before = trainer.reference.head.weight.clone()
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(1)
    assert torch.equal(trainer.reference.head.weight, before)


def test_bfloat16_states_take_half_the_room_and_come_back_as_float32():
    stored = states_of(tiny_model(), [batch_of(0, 1, 2)], dtype=torch.bfloat16)
    assert stored.values.dtype == torch.bfloat16
    assert stored.at(batch_of(1)).dtype == torch.float32


def test_the_key_changes_with_model_rows_order_and_precision():
    keys = {
        reference_key("model", ["a", "b"], torch.float32),
        reference_key("other", ["a", "b"], torch.float32),
        reference_key("model", ["b", "a"], torch.float32),
        reference_key("model", ["a", "b"], torch.bfloat16),
    }
    assert len(keys) == 4


def passes(monkeypatch) -> list[int]:
    """One entry for each forward pass from now on."""
    done: list[int] = []
    right = models.predicting_states

    def counted(model, batch, *, packed):
        done.append(1)
        return right(model, batch, packed=packed)

    monkeypatch.setattr(models, "predicting_states", counted)
    return done


@pytest.mark.parametrize("method", ["dpo_right", "altpo"])
def test_forget_and_preferred_completions_are_stored_in_one_pass(method, tmp_path, monkeypatch):
    """One batch holds all forget rows with both completions: one pass, where there were two."""
    trainer = make_trainer(tmp_path, method=method)
    done = passes(monkeypatch)
    trainer.prepare_references()
    assert len(done) == 1 and set(trainer.reference.values) == {"forget", "preferred"}


@pytest.mark.parametrize("settings", [{"method": "dpo_right"}, {"method": "undial"}], ids=str)
def test_a_live_reference_runs_once_for_all_roles_of_a_batch(settings, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, reference="live", retain_loss="kl", **settings)
    trainer.prepare_references()
    done = passes(monkeypatch)
    assert "retain" in trainer.reference.at(first_batch(trainer)) and len(done) == 1
