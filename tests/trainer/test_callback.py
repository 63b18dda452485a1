"""Probes, early stopping and best weights, in a trainer that is not ours."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from tiny_models import tiny_model
from tiny_trainers import CountingProbe
from unteach.trainer.callback import ProbeCallback
from unteach.trainer.checkpoints import BestWeights
from unteach.trainer.stopping import StopRule

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]} for _ in range(8)]


def train(
    folder: Any, rates: list[tuple[float, float]], steps: int = 8, **rule: Any
) -> tuple[ProbeCallback, Trainer]:
    """A plain trainer with the callback, which probes every second step and saves as often."""
    torch.manual_seed(0)
    limits = {"target_rate": 0.0, "hold": 2, "min_utility": 0.0} | rule
    callback = ProbeCallback(folder, StopRule(**limits), CountingProbe(rates), probe_steps=2)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(tiny_model(), args, train_dataset=ROWS, callbacks=[callback])
    trainer.train()
    return callback, trainer


def test_any_trainer_stops_when_the_rate_has_held_and_saves_there(tmp_path):
    callback, trainer = train(tmp_path, [(1, 1), (0.5, 1), (0, 1), (0, 1)])
    assert trainer.state.global_step == 6 and "in 2 probes in a row" in callback.rule.reason
    assert (tmp_path / "checkpoint-6").exists() and callback.probe_seconds > 0
    assert [probe["step"] for probe in callback.rule.history] == [0, 2, 4, 6]


def test_the_best_probe_s_weights_are_loaded_at_the_end(tmp_path):
    callback, trainer = train(tmp_path, [(1, 1), (0.1, 1), (0.5, 1), (0.6, 1), (0.7, 1)])
    last = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    callback.load_best(trainer.model, trainer.state.global_step)
    assert callback.rule.best_step == 2
    found = trainer.model.state_dict()
    assert any(not torch.equal(value, found[name]) for name, value in last.items())


def test_the_state_of_a_checkpoint_restores_the_rule(tmp_path):
    callback, _ = train(tmp_path, [(1, 1), (0.5, 1)])
    other = ProbeCallback(tmp_path, StopRule(0.0, 2, 0.0))
    other.load_state(callback.state())
    assert other.rule == callback.rule and other.probe_seconds == callback.probe_seconds


def test_a_damaged_newest_checkpoint_leaves_the_best_weights_of_the_one_before(tmp_path):
    """The best probe moves from step 2 to step 4; without checkpoint-4 and its best weights the run
    resumes from checkpoint-2 and needs those of step 2.
    """
    train(tmp_path, [(1, 1), (0.5, 1), (0.2, 1), (0.6, 1)], steps=4)
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"damaged")
    best = BestWeights(tmp_path)
    found = best.latest_checkpoint()
    assert found is not None and found.name == "checkpoint-2"
    assert best.folder(2).exists() and not best.damage(2)
    best.load(tiny_model(), 2)


def test_a_checkpoint_whose_best_weights_are_damaged_is_set_aside(tmp_path):
    train(tmp_path, [(1, 1), (0.5, 1), (0.2, 1), (0.6, 1)], steps=4)
    shutil.rmtree(tmp_path / "best-4")
    found = BestWeights(tmp_path).latest_checkpoint()
    assert found is not None and found.name == "checkpoint-2"
    assert (tmp_path / "damaged-checkpoint-4").exists()


def test_weights_that_are_not_finite_end_training_without_a_checkpoint(tmp_path):
    class Broken(CountingProbe):
        def __call__(self, model: Any) -> dict[str, float]:
            model.model.norm.weight.data.fill_(float("nan"))
            return super().__call__(model)

    callback = ProbeCallback(tmp_path, StopRule(0.0, 2, 0.0), Broken([(1, 1)]), probe_steps=2)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, use_cpu=True, report_to=[], disable_tqdm=True
    )
    Trainer(tiny_model(), args, train_dataset=ROWS, callbacks=[callback]).train()
    assert "no longer finite after step 2" in callback.fault == callback.rule.reason
    assert not list(tmp_path.glob("checkpoint-*"))


def test_without_a_probe_checkpoints_are_marked_all_the_same(tmp_path):
    callback = ProbeCallback(tmp_path, StopRule(0.0, 2, 0.0))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        save_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(tiny_model(), args, train_dataset=ROWS, callbacks=[callback]).train()
    assert callback.rule.history == []
    assert BestWeights(tmp_path).latest_checkpoint() == tmp_path / "checkpoint-2"
