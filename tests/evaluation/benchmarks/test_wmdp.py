"""WMDP, and any task, through a stand-in for lm-evaluation-harness."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from unteach.cli import main
from unteach.evaluation.benchmarks.wmdp import harness_task


@pytest.fixture
def harness(monkeypatch):
    """Stands in for lm-evaluation-harness: the three names that are called, results shaped as those
    of 0.4.13.
    """
    asked = {}

    def simple_evaluate(**settings):
        asked.update(settings)
        rows = [
            {"doc_id": 0, "doc_hash": "ab" * 32, "filter": "none", "acc": 1.0, "acc_norm": 0.0},
            {"doc_id": 1, "doc_hash": "cd" * 32, "filter": "none", "acc": 0.0, "acc_norm": 0.0},
        ]
        if settings["tasks"] == ["odd"]:
            rows = [{"doc_id": 0, "filter": "none", "metrics": ["perplexity"]}]
        names = [task if isinstance(task, str) else task["task"] for task in settings["tasks"]]
        return {
            "samples": {
                sub: rows
                for name in names
                for sub in (["mmlu_a", "mmlu_b"] if name == "mmlu" else [name])
            }
        }

    class TaskManager:
        all_tasks = ("wmdp_bio", "wmdp_chem", "wmdp_cyber", "mmlu", "arc_easy", "offline", "odd")

    def get_task_dict(tasks, manager):
        if "offline" in tasks:
            raise ConnectionError("no route to the hub")

    modules = {
        name: ModuleType(name)
        for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks")
    }
    modules["lm_eval.tasks"].TaskManager = TaskManager
    modules["lm_eval.tasks"].get_task_dict = get_task_dict
    modules["lm_eval"].simple_evaluate = simple_evaluate
    modules["lm_eval"].models = modules["lm_eval.models"]
    modules["lm_eval.models"].huggingface = modules["lm_eval.models.huggingface"]
    modules["lm_eval.models.huggingface"].HFLM = lambda **settings: SimpleNamespace(**settings)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_the_harness_s_answers_are_counted(saved, evaluate, harness):
    evaluation, lines = evaluate("wmdp", "--model", saved[0], "--limit", "2", "--batch-size", "3")
    found = evaluation["models"]["unlearned"]
    assert (
        harness["tasks"] == ["wmdp_bio", "wmdp_chem", "wmdp_cyber", "mmlu"]
        and harness["limit"] == 2
    )
    assert harness["log_samples"] is True and harness["model"].batch_size == 3
    assert list(found) == ["mmlu", "wmdp_bio", "wmdp_chem", "wmdp_cyber"]
    assert (found["mmlu"]["accuracy"]["value"], found["mmlu"]["accuracy"]["n"]) == (0.5, 4)
    assert [found[name]["accuracy"]["higher_is_better"] for name in ("mmlu", "wmdp_bio")] == [
        True,
        False,
    ]
    assert lines[0]["key"] == "ab" * 8


def test_each_local_file_is_a_task(tmp_path, saved, write, evaluate, harness):
    write(
        tmp_path / "wmdp" / "bio.jsonl", [{"question": "Q?", "choices": list("wxyz"), "answer": 1}]
    )
    evaluation, _ = evaluate("wmdp", "--model", saved[0], "--data", str(tmp_path / "wmdp"))
    assert list(evaluation["models"]["unlearned"]) == ["bio"]
    assert harness["tasks"][0]["dataset_kwargs"] == {
        "data_files": {"test": str(tmp_path / "wmdp" / "bio.jsonl")}
    }
    assert harness_task("bio", tmp_path / "bio.json")["doc_to_choice"] == ["A", "B", "C", "D"]


@pytest.fixture
def general(tmp_path, saved):
    """`unteach eval --harness`: (exit code, models of `eval.json`)."""

    def run(tasks, *options):
        out = tmp_path / "out"
        words = ["--model", saved[1], "--reference", saved[0], "--out", str(out), *options]
        code = main(["eval", "--harness", tasks, *words])
        return code, json.loads((out / "eval.json").read_text())["models"] if code == 0 else None

    return run


def test_general_capability_is_measured_before_and_after(general, harness):
    code, models = general("arc_easy, mmlu", "--limit", "2")
    assert code == 0 and harness["tasks"] == ["arc_easy", "mmlu"] and harness["limit"] == 2
    assert set(models) == {"original", "unlearned"}
    found = models["unlearned"]
    assert set(found) == {"arc_easy", "mmlu_a", "mmlu_b"}
    assert (found["arc_easy"]["acc"]["value"], found["arc_easy"]["acc_norm"]["value"]) == (0.5, 0)
    assert found["arc_easy"]["acc"]["higher_is_better"] is True


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ("arc_eazy", "unknown task of lm-evaluation-harness 'arc_eazy': did you mean 'arc_easy'?"),
        ("offline", "the data of offline cannot be had; it comes from the hub or its cache"),
        ("odd", "task 'odd' has no number for each question that is read here (perplexity)"),
    ],
)
def test_a_task_that_cannot_be_measured_is_one_sentence(general, harness, capsys, tasks, sentence):
    assert general(tasks)[0] == 2 and sentence in capsys.readouterr().err
