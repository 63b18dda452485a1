"""The dual variable of PDU: its updates, its limit, and a resumed run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_models import tiny_model
from tiny_trainers import make_trainer, metrics


def test_a_resumed_primal_dual_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    settings: dict[str, Any] = {
        "method": "pdu",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "dual_wait": 1,
    }
    whole = make_trainer(tmp_path / "whole", tiny_model(dtype=torch.float64), **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", tiny_model(dtype=torch.float64), **settings)

    def interrupt(record: dict[str, float]) -> None:
        if record["step"] == 5:
            raise KeyboardInterrupt

    cut.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        cut.train(resume_from_checkpoint=True)
    again = make_trainer(tmp_path / "cut", tiny_model(dtype=torch.float64), **settings)
    again.train(resume_from_checkpoint=True)
    assert all(
        torch.equal(value, again.model.state_dict()[name])
        for name, value in whole.model.state_dict().items()
    )
    lines = [metrics(tmp_path / name) for name in ("whole", "cut")]
    assert [line["retain_weight"] for line in lines[0]] == [
        line["retain_weight"] for line in lines[1]
    ]
    assert again.hooks.state() == whole.hooks.state()


def test_the_dual_weight_follows_the_retain_loss_above_its_limit(tmp_path):
    trainer = make_trainer(
        tmp_path, method="pdu", max_steps=4, dual_limit=1.0, dual_step_size=2.0, dual_wait=1
    )
    trainer.train()
    lines = metrics(tmp_path)
    weights = [line["retain_weight"] for line in lines]
    assert weights[:2] == [100.0, 100.0]
    assert weights[2] == pytest.approx(100 + 2 * (lines[1]["retain_nll"] - 1))


def test_without_a_limit_the_retain_loss_may_grow_by_a_tenth(tmp_path):
    trainer = make_trainer(tmp_path, tiny_model(dtype=torch.float64), method="pdu")
    trainer.prepare_references()
    assert trainer.hooks.limit == pytest.approx(1.1 * 6.3, rel=0.2)
    bounded = make_trainer(tmp_path / "kl", method="pdu", retain_loss="kl", max_retain_kl=0.3)
    bounded.prepare_references()
    assert bounded.hooks.limit == 0.3
