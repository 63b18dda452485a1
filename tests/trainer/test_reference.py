"""Stored states are the live ones."""

from __future__ import annotations

import pytest
import torch

from tiny_models import tiny_model
from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.trainer.reference import LiveReference, build_stored_reference, reference_key

ROWS = [((1, 2, 3), (4, 5)), ((6,), (7,)), ((8, 9), (10, 11, 12, 13))]


def batch_of(*indices: int, packed: bool = True) -> dict[str, torch.Tensor]:
    return make_batch(
        [Tree(ROWS[i][0], (Branch("retain", ROWS[i][1], 1.0, i),)) for i in indices],
        packed=packed,
        pad_id=0,
    )


def states_of(model):
    return lambda batch: models.predicting_states(model, batch, packed=True)


@pytest.mark.parametrize("on_disk", [True, False])
def test_stored_states_equal_live_ones_in_any_batch(on_disk, tmp_path):
    model = tiny_model(dtype=torch.float64)
    head = models.output_head(model)
    folder = tmp_path / "states" if on_disk else None
    stored = build_stored_reference(
        [batch_of(2, 0), batch_of(1)], [2, 1, 4], states_of(model), head, folder=folder, key="k"
    )
    live = LiveReference(states_of(model), head)
    for indices in ((0, 1, 2), (2, 1), (1,), (0, 0)):
        batch = batch_of(*indices)
        torch.testing.assert_close(
            stored.hidden(batch, torch.device("cpu")),
            live.hidden(batch, torch.device("cpu")),
            rtol=1e-9,
            atol=1e-9,
        )


def test_states_on_disk_are_used_again_and_only_for_the_same_key(tmp_path):
    model = tiny_model()
    arguments = ([2, 1, 4], states_of(model), models.output_head(model))
    first = build_stored_reference([batch_of(0, 1, 2)], *arguments, folder=tmp_path, key="one")
    again = build_stored_reference([], *arguments, folder=tmp_path, key="one")
    every = torch.arange(7)
    assert torch.equal(first.values[every], again.values[every])
    with pytest.raises(ValueError, match="no retain rows"):
        build_stored_reference([], *arguments, folder=tmp_path, key="another")


def test_the_stored_head_does_not_follow_training():
    model = tiny_model()
    stored = build_stored_reference(
        [batch_of(0, 1, 2)], [2, 1, 4], states_of(model), models.output_head(model)
    )
    before = stored.head.weight.clone()
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    assert torch.equal(stored.head.weight, before)


def test_bfloat16_states_take_half_the_room_and_come_back_as_float32():
    model = tiny_model()
    stored = build_stored_reference(
        [batch_of(0, 1, 2)],
        [2, 1, 4],
        states_of(model),
        models.output_head(model),
        dtype=torch.bfloat16,
    )
    assert stored.values.dtype == torch.bfloat16
    assert stored.hidden(batch_of(1), torch.device("cpu")).dtype == torch.float32


def test_the_key_changes_with_model_rows_order_and_precision():
    keys = {
        reference_key("model", ["a", "b"], torch.float32),
        reference_key("other", ["a", "b"], torch.float32),
        reference_key("model", ["b", "a"], torch.float32),
        reference_key("model", ["a", "b"], torch.bfloat16),
    }
    assert len(keys) == 4
