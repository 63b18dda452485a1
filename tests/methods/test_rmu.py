"""RMU: its losses by hand, its layer, and what it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tiny_models import tiny_model
from tiny_trainers import compare, make_trainer, metrics, weights_interrupted
from unteach.errors import UserError
from unteach.methods.rmu import (
    adaptive_steering_distance,
    rerouting,
    state_drift,
    steering_distance,
    steering_layer,
    steering_vector,
)


def test_state_losses_by_hand():
    states = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert steering_distance(states, torch.tensor([0.0, 1.0])).tolist() == [18.0, 0.0]
    assert state_drift(states, torch.zeros(2, 2)).tolist() == [25.0, 1.0]
    direction = steering_vector(64, 6.5, seed=3)
    assert direction.norm().item() == pytest.approx(6.5) and (direction >= 0).all()
    assert torch.equal(direction, steering_vector(64, 6.5, seed=3)) and not torch.equal(
        direction, steering_vector(64, 6.5, seed=4)
    )


def test_adaptive_losses_by_hand():
    states, reference = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    unit = torch.tensor([0.0, 1.0])
    assert adaptive_steering_distance(states, reference, unit, beta=1.5).tolist() == [10.0]
    assert rerouting(states, reference).tolist() == pytest.approx([0.8])
    assert rerouting(states, -reference).tolist() == [0.0]


@pytest.mark.parametrize("retain", ["states", "kl"])
@pytest.mark.parametrize("method", ["adaptive_rmu", "circuit_breaker"])
def test_losses_on_the_reference_s_states_equal_the_twin_s(method, retain, tmp_path):
    """In the second step of two, where the weight of the circuit breaker's retain term is a third
    of its last one's, t / (2T - t).
    """
    model = tiny_model(num_hidden_layers=4, dtype=torch.float64)
    trainer = make_trainer(tmp_path, model, method=method, retain_loss=retain)
    trainer.hooks.step = 1
    compare(trainer, 1e-7)
    if method == "circuit_breaker":
        assert trainer.hooks.budget.weight == pytest.approx(1 / 3)


def test_circuit_breakers_turn_the_states_of_what_is_forgotten_and_resume(tmp_path):
    def trainer_of(folder: Any, **settings: Any) -> Any:
        model = tiny_model(num_hidden_layers=4, dtype=torch.float64)
        own = {"method": "circuit_breaker", "learning_rate": 3e-3}
        return make_trainer(folder, model, **(own | settings))

    trainer_of(tmp_path, max_steps=30).train()
    lines = metrics(tmp_path)
    assert lines[0]["forget_loss"] == pytest.approx(1.0)
    assert lines[-1]["forget_loss"] < 0.5
    assert lines[0]["retain_weight"] == 0.0
    assert lines[15]["retain_weight"] == pytest.approx(15 / 45)
    whole, resumed = weights_interrupted(tmp_path, trainer_of)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


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
