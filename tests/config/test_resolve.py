"""`resolve()`: whose value wins, what is filled in, and that nobody's objects change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unteach import unlearn
from unteach.config import UnlearningConfig
from unteach.config import resolve as resolving
from unteach.config.resolve import LEAST_STEPS, SCHEDULE, resolve, suitable_learning_rate
from unteach.errors import UserError
from unteach.methods import DEFAULT_METHOD, METHODS
from unteach.plan import plan_run
from unteach.scenarios import SCENARIOS, demo_presets

ROWS = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(12)
]
BY_DEFAULT = {**METHODS[DEFAULT_METHOD].settings, **SCHEDULE}
BARE = {"similarity_model": None, "probe_steps": 100, "per_device_train_batch_size": 2}


def config(**given: Any) -> UnlearningConfig:
    return resolve({"use_cpu": True, **given}, width=576).unlearning_config("out")


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("width", "lora", "rate"),
    [(576, False, 1.3e-4), (4096, False, 1.8e-5), (576, True, 5.2e-4), (4096, True, 7.3e-5)],
)
def test_the_rate_goes_with_one_over_the_width_and_an_adapter_takes_more(width, lora, rate):
    assert suitable_learning_rate(width, "unlikelihood", lora=lora) == rate
    resolved = resolve({"lora": lora}, width=width)
    assert (resolved.training["learning_rate"], resolved.sources["learning_rate"]) == (
        rate,
        "model",
    )


def test_the_rate_waits_for_the_width():
    resolved = resolve({})
    assert "learning_rate" not in resolved.training and resolved.sources["learning_rate"] == "model"
    assert resolved.with_width(576).training["learning_rate"] == 1.3e-4


def test_a_method_takes_its_share_of_the_rate():
    assert config(method="ga").learning_rate == 2e-5
    assert suitable_learning_rate(576, "ga", lora=False) == 2e-5


def test_what_is_given_stays():
    made = config(learning_rate=3e-6, num_train_epochs=2)
    assert (made.learning_rate, made.planned_steps(6)) == (3e-6, 3)
    assert config(max_steps=7).planned_steps(6) == 7
    assert config(max_steps=-1).planned_steps(6) == LEAST_STEPS


@pytest.mark.parametrize(
    ("rows", "processes", "steps"), [(19, 1, LEAST_STEPS), (10_000, 1, 7500), (10_000, 2, 3750)]
)
def test_few_rows_are_gone_through_more_often(rows, processes, steps):
    assert config().planned_steps(rows, processes) == steps


def test_the_default_method_brings_its_settings_where_they_are_not_given():
    resolved = resolve({})
    assert {name: resolved.training[name] for name in BY_DEFAULT} == BY_DEFAULT
    assert {resolved.sources[name] for name in BY_DEFAULT} == {"method"}
    made = config()
    assert made.method == DEFAULT_METHOD == resolved.run.method
    assert made.get_warmup_steps(100) == 10
    kept = config(mismatch_completions=3, retain_weight=1.0)
    assert (kept.mismatch_completions, kept.weights["retain"]) == (3, 1.0)
    assert kept.lr_scheduler_type == "linear"
    other = config(lr_scheduler_type="cosine")
    assert (other.lr_scheduler_type, other.warmup_steps) == ("cosine", 0)
    assert other.weights["retain"] == 5.0
    assert config(method="ga_mismatch").mismatch_completions == 5
    rules = resolve({"method": "ga", "max_steps": 1, "learning_rate": 1e-4}).filled_in
    assert rules == {}


def test_a_method_may_say_how_long_a_run_is_at_least_unless_the_user_does():
    assert config(method="counterfactual").planned_steps(12, 1) == 80
    assert config(method="counterfactual", num_train_epochs=1).planned_steps(12, 1) < 40
    assert config(method="counterfactual").max_retain_kl is None


def test_the_kind_of_the_rows_decides_the_method_where_nobody_else_does():
    resolved = resolve({}).with_rows(method="counterfactual")
    assert resolved.run.method == "counterfactual" == resolved.unlearning_config("out").method
    assert resolved.sources["method"] == "rows"
    for chosen in (resolve({"method": "npo"}), resolve({}, presets={"method": "npo"})):
        assert chosen.with_rows(method="counterfactual") is chosen


@pytest.mark.parametrize(("retain_loss", "weight"), [("kl", 5.0), ("nll", 1.0), ("none", 0.0)])
def test_another_retain_loss_than_the_method_s_has_its_own_weight(retain_loss, weight):
    assert config(retain_loss=retain_loss).weights["retain"] == weight
    assert config(retain_loss="nll", retain_weight=2.0).weights["retain"] == 2.0


def test_each_value_names_its_source_and_the_user_s_wins():
    presets = {"max_steps": 42, "lora": True, "hold": 3, "teach": {"learning_rate": 1.0}}
    resolved = resolve({"max_steps": 7, "seed": 5}, presets=presets)
    assert resolved.training["max_steps"] == 7 and resolved.run.seed == 5 and resolved.run.lora
    wanted = {
        "max_steps": "user",
        "seed": "user",
        "lora": "scenario",
        "hold": "scenario",
        "save_steps": "default",
        "retain_weight": "method",
        "learning_rate": "model",
        "model": "default",
    }
    assert {name: resolved.sources[name] for name in wanted} == wanted
    assert "teach" not in resolved.training
    searched = resolved.with_training("search", method="npo", learning_rate=1e-5)
    assert searched.training["learning_rate"] == 1e-5 and searched.sources["method"] == "search"
    assert "retain_weight" not in searched.training, "the default method's settings go with it"
    assert searched.chosen == resolved.chosen == {"max_steps": 7, "hold": 3}


def test_auto_stays_what_the_user_named():
    resolved = resolve({"method": "auto"}).with_training("search", method="npo", beta=0.2)
    assert (resolved.run.method, resolved.training["method"]) == ("auto", "npo")
    assert resolved.unlearning_config("out").beta == 0.2
    assert resolve({"method": "auto"}).filled_in["learning_rate"] == {"times_width": 0.075}


def test_a_baseline_takes_nothing_by_rule():
    resolved = resolve({"method": "sft", "patience": 2, "stages": {"sft": {"max_steps": 3}}})
    assert dict(resolved.training) == {"method": "sft", "patience": 2}
    assert resolved.filled_in == {} and resolved.run.stages == {"sft": {"max_steps": 3}}


def test_neither_arguments_nor_results_change():
    given = {"settings": {"max_steps": 3}, "lora": True, "out": "somewhere"}
    presets = {"bf16": "auto", "method": "npo", "forget_weight": 1.0, "teach": {}}
    copies = json.loads(json.dumps([given, presets]))
    resolved = resolve(given, presets=presets)
    before = resolved.as_dict()
    resolved.with_training("search", beta=0.3)
    resolved.with_run(output_dir="elsewhere").with_width(64)
    assert [given, presets] == copies and resolved.as_dict() == before
    with pytest.raises(TypeError):
        resolved.training["max_steps"] = 4  # type: ignore[index]
    with pytest.raises(AttributeError):
        resolved.run.seed = 4  # type: ignore[misc]
    first, second = resolved.unlearning_config("a"), resolved.unlearning_config("b", max_steps=9)
    assert (first.max_steps, second.max_steps) == (3, 9) and first is not second


def test_settings_may_stand_in_a_mapping_of_their_own():
    assert resolve({"settings": {}}).as_dict() == resolve({}).as_dict()
    assert resolve({"settings": {"hold": 4}}).training["hold"] == 4
    with pytest.raises(UserError, match="option 'hold' is given twice"):
        resolve({"hold": 3, "settings": {"hold": 4}})
    with pytest.raises(UserError, match="option 'settings' is 3, it must be a mapping"):
        resolve({"settings": 3})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lerning_rate": 1}, "unknown option 'lerning_rate': did you mean 'learning_rate'"),
        ({"serach_steps": 1}, "unknown option 'serach_steps': did you mean 'search_steps'"),
        ({"learning_rate": "fast"}, "option 'learning_rate' is 'fast', it must be float"),
        ({"lora": 1}, "option 'lora' is 1, it must be bool"),
        ({"model": 3}, "option 'model' is 3, it must be str"),
        (
            {"accelerator_config": True},  # was opened as file descriptor 1, and that closed
            "option 'accelerator_config' is True, it must be dict or null or str",
        ),
        ({"fsdp_config": 2}, "option 'fsdp_config' is 2, it must be dict or null or str"),
        ({"report_to": 1}, "option 'report_to' is 1, it must be list or null or str"),
        ({"lora_rank": 0}, "option 'lora_rank' is 0, it must be at least 1"),
        ({"seed": -1}, "option 'seed' is -1, it must be at least 0"),
        ({"probe_rows": 0}, "option 'probe_rows' is 0, it must be at least 1"),
        ({"data_seed": 1}, "option 'data_seed' is given as seed"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_a_wrong_option_is_named(given, message):
    with pytest.raises(UserError, match=message):
        resolve(given)


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_another_method_than_the_preset_one_drops_its_weights(scenario):
    presets = demo_presets(scenario)
    own = METHODS[presets["method"]].settings  # where the preset names no weight
    weight = presets.get("retain_weight", own.get("retain_weight"))
    assert resolve({}, presets=presets).training["retain_weight"] == weight
    same = resolve({"method": presets["method"]}, presets=presets)
    assert same.training["retain_weight"] == weight
    other = resolve({"method": "ga", "seed": 1}, presets=presets)
    assert not [name for name in other.training if name.endswith("_weight")]
    assert other.training["max_steps"] == presets["max_steps"]


def test_unlearn_takes_settings_in_a_mapping_of_their_own(tmp_path):
    with pytest.raises(UserError, match="unknown option 'hodl': did you mean 'hold'"):
        unlearn("m", ROWS, output_dir=str(tmp_path), settings={"hodl": 1})


@pytest.mark.parametrize(("method", "retain"), [("unlikelihood", 3), ("finetuning", 200)])
def test_a_run_takes_rate_and_length_from_its_model_and_rows(saved_model, tmp_path, method, retain):
    keep = [{"prompt": f"What is {i}?", "completion": "A number."} for i in range(retain)]
    out, options = tmp_path / "out", {"method": method, "min_utility": 0.0, "hold": 9, **BARE}
    result = unlearn(saved_model, ROWS, keep, output_dir=str(out), **options)
    found = record(out)
    rate = suitable_learning_rate(result.model.config.hidden_size, method, lora=False)
    rows = found["retain_rows" if method == "finetuning" else "forget_rows"]
    steps = max(LEAST_STEPS, math.ceil(3 * rows / 2))
    assert (found["learning_rate"], found["steps"]) == (rate, steps)
    assert found["stop_reason"] == f"max_steps ({steps}) reached"
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["learning_rate"] for line in lines if "loss" in line} == {rate}


def test_an_adapter_takes_its_own_rate_and_the_folder_says_by_which_rule(saved_model, tmp_path):
    out, options = tmp_path / "out", {"lora": True, "max_steps": 1, **BARE}
    options |= {"method": DEFAULT_METHOD}
    kept = [{"prompt": f"What is {i}?", "completion": f"A number, {i}."} for i in range(3)]
    result = unlearn(saved_model, ROWS, kept, output_dir=str(out), **options)
    wanted = suitable_learning_rate(result.model.config.hidden_size, "unlikelihood", lora=True)
    assert record(out)["learning_rate"] == wanted
    written = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    rule = {"learning_rate": {"times_width": 0.3, "share": 1.0}, **BY_DEFAULT}
    assert written["filled_in"] == rule


def test_a_plan_counts_the_steps_that_the_run_will_take(saved_model):
    assert plan_run(saved_model, {}, forget_rows=12)["steps"] == LEAST_STEPS
    finetuning = plan_run(saved_model, {"method": "finetuning"}, forget_rows=12, retain_rows=400)
    assert finetuning["steps"] == 300


@pytest.mark.parametrize(
    ("facts", "able"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 rdpid\n", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu sse2 avx2 avx512f\nbugs\t\t: bf16\n", False),
        ("Features\t: fp asimd svebf16x\n", False),
        (None, False),
    ],
)
def test_a_processor_that_multiplies_bfloat16_is_told_by_its_features(
    facts, able, monkeypatch, tmp_path
):
    if torch.cuda.is_available():
        pytest.skip("the GPU is asked instead")
    place = tmp_path / "cpuinfo"
    if facts is not None:
        place.write_text(facts)
    monkeypatch.setattr(resolving, "CPU_FACTS", place)
    assert resolving.multiplies_bfloat16() is able
