"""What a run takes where nobody names a learning rate or a length."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml

from unteach import unlearn
from unteach.config import UnlearningConfig
from unteach.config.defaults import BY_DEFAULT, LEAST_STEPS, complete, rules, suitable_learning_rate
from unteach.methods import DEFAULT_METHOD
from unteach.plan import plan_run

ROWS = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(12)
]
BARE = {"similarity_model": None, "probe_steps": 100, "per_device_train_batch_size": 2}


def completed(lora: bool = False, **given: object) -> UnlearningConfig:
    made = UnlearningConfig(**{"output_dir": "out", "use_cpu": True, **given})
    complete(made, given, width=576, lora=lora)
    return made


def record(folder: Any) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("width", "lora", "rate"),
    [(576, False, 1.3e-4), (4096, False, 1.8e-5), (576, True, 5.2e-4), (4096, True, 7.3e-5)],
)
def test_the_rate_goes_with_one_over_the_width_and_an_adapter_takes_more(width, lora, rate):
    assert suitable_learning_rate(width, "unlikelihood", lora=lora) == rate


def test_a_method_takes_its_share_of_the_rate():
    assert (
        suitable_learning_rate(576, "ga", lora=False)
        == completed(method="ga").learning_rate
        == 2e-5
    )


def test_what_is_given_stays():
    made = completed(learning_rate=3e-6, num_train_epochs=2)
    assert (made.learning_rate, made.planned_steps(6)) == (3e-6, 3)
    assert completed(max_steps=7).planned_steps(6) == 7
    assert completed(max_steps=-1).planned_steps(6) == LEAST_STEPS


@pytest.mark.parametrize(
    ("rows", "processes", "steps"), [(19, 1, LEAST_STEPS), (10_000, 1, 7500), (10_000, 2, 3750)]
)
def test_few_rows_are_gone_through_more_often(rows, processes, steps):
    assert completed().planned_steps(rows, processes) == steps


@pytest.mark.parametrize(("method", "retain"), [("unlikelihood", 3), ("finetuning", 200)])
def test_a_run_takes_them_from_the_rows_that_it_trains_on(saved_model, tmp_path, method, retain):
    keep = [{"prompt": f"What is {i}?", "completion": "A number."} for i in range(retain)]
    result = unlearn(
        saved_model,
        ROWS,
        keep,
        output_dir=str(tmp_path / "out"),
        method=method,
        min_utility=0.0,
        hold=9,
        **BARE,
    )
    found, rate = (
        record(tmp_path / "out"),
        suitable_learning_rate(result.model.config.hidden_size, method, lora=False),
    )
    steps = max(
        LEAST_STEPS,
        math.ceil(
            3 * (found["retain_rows"] if method == "finetuning" else found["forget_rows"]) / 2
        ),
    )
    assert (found["learning_rate"], found["stop_reason"], found["steps"]) == (
        rate,
        f"max_steps ({steps}) reached",
        steps,
    )
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {line["learning_rate"] for line in lines if "loss" in line} == {rate}


def test_an_adapter_takes_its_own_rate_and_the_folder_says_by_which_rule(saved_model, tmp_path):
    result = unlearn(
        saved_model,
        ROWS,
        ROWS[:3],
        output_dir=str(tmp_path / "out"),
        lora=True,
        max_steps=1,
        **BARE,
    )
    wanted = suitable_learning_rate(result.model.config.hidden_size, "unlikelihood", lora=True)
    assert record(tmp_path / "out")["learning_rate"] == wanted
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert (
        config["by_itself"]
        == rules({"max_steps": 1}, lora=True)
        == {"learning_rate": {"times_width": 0.3, "share": 1.0}, **BY_DEFAULT}
    )


def test_the_default_method_brings_its_settings_where_they_are_not_given():
    made = completed()
    assert {
        name: getattr(made, name) for name in BY_DEFAULT
    } == BY_DEFAULT and made.method == DEFAULT_METHOD
    assert made.get_warmup_steps(100) == 10
    kept = completed(mismatch_completions=3, retain_weight=1.0)
    assert (kept.mismatch_completions, kept.weights["retain"], kept.lr_scheduler_type) == (
        3,
        1.0,
        "linear",
    )
    other = completed(lr_scheduler_type="cosine")
    assert (other.lr_scheduler_type, other.warmup_steps, other.weights["retain"]) == (
        "cosine",
        0,
        5.0,
    )
    assert (
        completed(method="ga_mismatch").mismatch_completions == 5
        and rules({"method": "ga", "max_steps": 1, "learning_rate": 1}, lora=False) == {}
    )


def test_a_plan_counts_the_steps_that_the_run_will_take(saved_model):
    assert plan_run(saved_model, {}, forget_rows=12)["steps"] == LEAST_STEPS
    assert (
        plan_run(saved_model, {"method": "finetuning"}, forget_rows=12, retain_rows=400)["steps"]
        == 300
    )
