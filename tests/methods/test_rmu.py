"""RMU: its losses by hand, its layer, and what it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tiny_models import tiny_model
from tiny_trainers import make_trainer, metrics
from unteach.errors import UserError
from unteach.methods.rmu import state_drift, steering_distance, steering_layer, steering_vector


def test_state_losses_by_hand():
    states = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert steering_distance(states, torch.tensor([0.0, 1.0])).tolist() == [18.0, 0.0]
    assert state_drift(states, torch.zeros(2, 2)).tolist() == [25.0, 1.0]
    direction = steering_vector(64, 6.5, seed=3)
    assert direction.norm().item() == pytest.approx(6.5) and (direction >= 0).all()
    assert torch.equal(direction, steering_vector(64, 6.5, seed=3)) and not torch.equal(
        direction, steering_vector(64, 6.5, seed=4)
    )


def test_steering_trains_all_or_the_three_layers_of_the_paper(tmp_path):
    model = tiny_model(num_hidden_layers=5)
    before = copy.deepcopy(model.state_dict())
    settings: dict[str, Any] = {
        "method": "rmu",
        "steering_layer": 3,
        "steering_update": "three_layers",
        "max_steps": 2,
    }
    trainer = make_trainer(tmp_path, model, **settings)
    trainer.train()
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed and all(
        any(f"layers.{number}." in name for number in (1, 2, 3)) for name in changed
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_steering_moves_forget_states_and_holds_the_others(tmp_path):
    trainer = make_trainer(
        tmp_path,
        tiny_model(num_hidden_layers=4),
        method="rmu",
        max_steps=30,
        learning_rate=3e-3,
        retain_weight=1.0,
    )
    trainer.train()
    lines = metrics(tmp_path)
    assert lines[-1]["forget_loss"] < 0.7 * lines[0]["forget_loss"]


def test_the_default_steering_layer_is_where_the_paper_s_is():
    assert steering_layer(32, None) == 7
    with pytest.raises(UserError, match=r"steering_layer is 2, but the model has 2 layers"):
        steering_layer(2, 2)
