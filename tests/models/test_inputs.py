"""Inputs of the decoder and what is off in it."""

from __future__ import annotations

import pytest
import torch

from tiny_models import WINDOWS, tiny_model
from unteach import models
from unteach.data.packing import Branch, Tree, make_batch


def test_dropout_is_off_inside_the_block_in_training_mode_too():
    model = tiny_model("opt").train()
    ids = torch.tensor([[1, 2, 3]])
    with models.dropout_off(model):
        torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert not torch.equal(model(ids).logits, model(ids).logits)


TREES = [
    Tree((5, 6, 7, 8, 9, 10), (Branch("forget", (11, 12, 13, 14)), Branch("mismatch", (15, 16)))),
    Tree((5, 6, 7), (Branch("retain", (21, 22, 23, 24, 25, 26, 27, 28)),)),
    Tree((5, 6, 30), (Branch("retain", (31,)),)),
]


@pytest.mark.parametrize("window", [2, 5, 100])
@pytest.mark.parametrize("family", WINDOWS)
def test_packed_rows_have_the_states_of_plain_ones_under_a_sliding_window(family, window):
    model = tiny_model(family, sliding_window=window, **WINDOWS[family])
    packed, plain = (
        models.predicting_states(
            model, make_batch(TREES, packed=packed, pad_id=0, row_tokens=32), packed=packed
        )
        for packed in (True, False)
    )
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)


def test_layers_of_an_unknown_type_get_the_mask_without_limits():
    model = tiny_model("gemma3", sliding_window=2)
    model.config.layer_types = ["sliding_attention", "something_new"]
    batch = make_batch(TREES, packed=True, pad_id=0)
    mask = models.model_inputs(model, batch, packed=True)["attention_mask"]
    assert isinstance(mask, torch.Tensor)
