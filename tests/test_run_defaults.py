"""What a run takes where nobody names a learning rate or a length."""

from __future__ import annotations

import json

import pytest

from unteach import unlearn
from unteach.config import UnlearningConfig
from unteach.run_defaults import EPOCHS, LEAST_STEPS, complete, suitable_learning_rate


def config(**settings: object) -> UnlearningConfig:
    return UnlearningConfig(**{"output_dir": "out", "use_cpu": True, **settings})


def completed(rows: int = 1000, processes: int = 1, lora: bool = False, **given: object) -> UnlearningConfig:
    made = config(**given)
    complete(made, given, width=576, rows=rows, lora=lora, processes=processes)
    return made


@pytest.mark.parametrize(("width", "lora", "rate"), [(576, False, 1.3e-4), (4096, False, 1.8e-5), (576, True, 1e-3), (4096, True, 1.5e-4)])
def test_the_rate_goes_with_one_over_the_width_and_an_adapter_takes_more(width, lora, rate):
    assert suitable_learning_rate(width, config(), lora=lora) == rate


def test_a_method_takes_its_share_of_the_rate():
    assert suitable_learning_rate(576, config(method="ga"), lora=False) == 2e-5


def test_what_is_given_stays():
    made = completed(learning_rate=3e-6, num_train_epochs=2)
    assert (made.learning_rate, made.num_train_epochs) == (3e-6, 2)
    assert completed(max_steps=7).num_train_epochs == config().num_train_epochs


@pytest.mark.parametrize(("rows", "processes", "epochs"), [(19, 1, 100 * 4 / 19), (19, 2, 100 * 8 / 19), (10_000, 1, EPOCHS)])
def test_few_rows_are_gone_through_more_often(rows, processes, epochs):
    assert completed(rows=rows, processes=processes).num_train_epochs == pytest.approx(epochs)


def test_a_run_says_what_rate_it_took(saved_model, tmp_path):
    rows = [{"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(12)]
    settings = {"similarity_model": None, "probe_steps": 1, "target_rate": 1.0}  # enough is forgotten at once
    result = unlearn(saved_model, rows, rows[:3], output_dir=str(tmp_path / "out"), **settings)
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["learning_rate"] == suitable_learning_rate(result.model.config.hidden_size, config(), lora=False)
    assert record["steps"] < LEAST_STEPS
