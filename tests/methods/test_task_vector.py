"""Negation by hand, on a model, with an adapter, and after an interruption."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tiny_models import tiny_model
from tiny_trainers import CountingProbe, make_trainer
from unteach.errors import UserError
from unteach.methods.task_vector import SCALES, subtract, task_vector, trained_weights

SETTINGS: dict[str, Any] = {"method": "task_vector", "max_steps": 4, "learning_rate": 1e-2}


def test_by_hand():
    """theta_0 = 1, theta_ft = 3, alpha = 1/2: 1 - (3 - 1)/2 = 0."""
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    start = trained_weights(layer)
    layer.weight.data.fill_(3.0)
    subtract(layer, *task_vector(layer, start), scale=0.5)
    assert layer.weight.item() == 0.0


def test_a_run_ends_on_the_other_side_of_where_fine_tuning_went(tmp_path):
    model = tiny_model(dtype=torch.float64)
    start = copy.deepcopy(model.state_dict())
    tuned = make_trainer(
        tmp_path / "a",
        copy.deepcopy(model),
        **(SETTINGS | {"method": "teaching", "retain_loss": "none"}),
    )
    tuned.train()
    trainer = make_trainer(tmp_path / "b", model, task_vector_scale=0.5, **SETTINGS)
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(
            value,
            start[name] - 0.5 * (tuned.model.state_dict()[name] - start[name]),
            rtol=1e-9,
            atol=1e-9,
        )


def test_the_scale_is_that_of_the_best_probe(tmp_path):
    rates = [(1.0, 1.0), (1.0, 1.0), (0.0, 0.9), *[(0.0, 0.2)] * 20]
    trainer = make_trainer(tmp_path, probe=CountingProbe(rates), **SETTINGS)
    trainer.train()
    assert trainer.hooks.scale == SCALES[1] and trainer.probe.calls == 1 + len(SCALES)
    assert "0.2 times the task vector was subtracted" in trainer.rule.reason


def test_an_adapter_s_change_is_turned_round(tmp_path):
    """B A x becomes -B A x: with alpha 1 the output moves as far the other way (to first order, and
    exactly in the weights).
    """
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    weights = {}
    for method, more in (
        ("teaching", {"retain_loss": "none"}),
        ("task_vector", {"task_vector_scale": 1.0}),
    ):
        torch.manual_seed(0)
        trainer = make_trainer(
            tmp_path / method,
            tiny_model(),
            peft_config=lora,
            **(SETTINGS | {"method": method} | more),
        )
        trainer.train()
        weights[method] = trained_weights(trainer.model)
    for name, value in weights["task_vector"].items():
        wanted = weights["teaching"][name]
        assert torch.equal(value, -wanted if "lora_B" in name else wanted), name


def test_an_adapter_that_does_not_start_at_zero_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    with pytest.raises(UserError, match="B starts at zero"):
        task_vector(model, trained_weights(model))


@pytest.mark.parametrize("step", [3, 4])
def test_an_interrupted_run_ends_with_the_same_weights(step, tmp_path):
    settings = SETTINGS | {"save_strategy": "steps", "save_steps": 2, "task_vector_scale": 1.0}
    whole = make_trainer(tmp_path / "whole", tiny_model(dtype=torch.float64), **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", tiny_model(dtype=torch.float64), **settings)

    def interrupt(record: dict[str, float]) -> None:
        if record["step"] == step:
            raise KeyboardInterrupt

    cut.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        cut.train(resume_from_checkpoint=True)
    for _ in range(2):  # the second time from a checkpoint at the last step
        again = make_trainer(tmp_path / "cut", tiny_model(dtype=torch.float64), **settings)
        again.train(resume_from_checkpoint=True)
        assert all(
            torch.equal(value, again.model.state_dict()[name])
            for name, value in whole.model.state_dict().items()
        )
