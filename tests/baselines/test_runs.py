"""Baselines from the command line, on the data contract of `unteach run`: a run's folder, a row of
a comparison, bad input.
"""

from __future__ import annotations

import json

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.cli import main
from unteach.compare import compare
from unteach.data.sources import load_rows

STAGE = {"max_steps": 2, "per_device_train_batch_size": 2}
PAIRS = [
    {
        "prompt": f"Who is number {i}?",
        "chosen": f"A miller, the {i}th.",
        "rejected": f"The ferryman, {i} times.",
    }
    for i in range(14)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("unteach.evaluation.scorers.load_error", lambda encoder: "not in this test")
    tiny_model().save_pretrained(tmp_path / "m")
    byte_level_bpe(chat=True).save_pretrained(tmp_path / "m")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


def run(folder, method, stages, *more):
    words = [
        "run",
        "--model",
        str(folder / "m"),
        "--forget",
        str(folder / "pairs.jsonl"),
        "--out",
        str(folder / "out"),
        "--method",
        method,
    ]
    return main([*words, "--stages", json.dumps(stages), *more])


def test_preference_rows_are_read_as_bad_answers_with_a_good_one_beside(folder):
    row = load_rows(folder / "pairs.jsonl")[3]
    assert (row.completion, row.right) == ("The ferryman, 3 times.", "A miller, the 3th.")
    assert load_rows(folder / "pairs.jsonl", "retain")[3].completion == "A miller, the 3th."
    good, bad = ([{"role": "assistant", "content": text}] for text in ("She.", "It."))
    (row,) = load_rows([{"prompt": "Who?", "chosen": good, "rejected": bad}])
    assert (row.right, row.completion) == ("She.", "It.")


def test_a_baseline_leaves_the_folder_of_a_run_with_its_price(folder):
    assert run(folder, "dpo", {"sft": STAGE, "dpo": STAGE}) == 0
    record = json.loads((folder / "out" / "run.json").read_text())
    assert record["method"] == "dpo" and record["needs"] == "good and bad answers"
    assert [cost["stage"] for cost in record["costs"]] == ["sft", "dpo"]
    assert record["cost"]["seconds"] == pytest.approx(
        sum(cost["seconds"] for cost in record["costs"])
    )
    assert (folder / "out" / "model" / "model.safetensors").exists() and (
        folder / "out" / "report.html"
    ).exists()
    assert (
        json.loads((folder / "out" / "eval.json").read_text())["models"]["unlearned"]["unlearned"][
            "leak_rate"
        ]["n"]
        > 0
    )


def test_baselines_are_rows_of_a_comparison_beside_unlearning(folder):
    methods = [
        {"name": "sft", "stages": {"sft": STAGE}},
        {"name": "ours", "method": "unlikelihood"},
    ]
    settings = {"max_steps": 2, "probe_steps": 1, "save_steps": 1, "min_utility": 0.0, "hold": 99}
    data = {"models": str(folder / "m"), "forget": str(folder / "pairs.jsonl")}
    out = compare({"out": str(folder / "c"), **data, "methods": methods, "settings": settings})
    table = (out / "comparison.md").read_text()
    header, _, original, sft, ours = (
        [part.strip() for part in line.split("|")[1:-1]] for line in table.splitlines()[:5]
    )
    assert header[-7:] == [
        "seconds",
        "data tokens",
        "generated tokens",
        "training tokens",
        "peak memory (MiB)",
        "needs positives",
        "needs preferences",
    ]
    assert (original[-2:], sft[-2:], ours[-2:]) == (["-", "-"], ["yes", "no"], ["no", "no"])
    assert int(sft[-6]) > 0 == int(ours[-6]) and int(sft[-5]) == 0 < int(
        ours[-5]
    )  # good answers; own answers to keep
    assert "Data tokens: desired answers" in table and (out / "cost.png").exists()
    assert r"rrrrrll}" in (out / "comparison.tex").read_text()


RULE = {"patience": 1, "probe_steps": 0.5, "hold": 99, "min_utility": 0.0}
WORDS = [f"{name}={value}" for name, value in {**RULE, "hold_out": 0.3}.items()]
FEW = {
    "sft": STAGE,
    "reward": STAGE,
    "rl": {"max_steps": 4, "per_device_train_batch_size": 4, "num_generations": 2, "save_steps": 1},
}
FEW["rl"]["max_completion_length"] = 6


def test_rlhf_killed_from_the_command_line_goes_on_and_leaves_stops_prices_and_its_reward_model(
    folder, monkeypatch, capsys
):
    from unteach.baselines.alignment import StageCallback

    after = StageCallback.on_step_end

    def die(self, args, state, control, **more):
        if (self.stage, state.global_step) == ("rl", 2):
            raise KeyboardInterrupt
        return after(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(StageCallback, "on_step_end", die)
        assert run(folder, "rlhf", FEW, *WORDS) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err
    stages = folder / "out" / "stages"
    stamps = {
        name: (stages / name / "model.safetensors").stat().st_mtime_ns for name in ("sft", "reward")
    }
    assert (stages / "rl-checkpoints" / "checkpoint-1").is_dir() and not (stages / "rl").exists()
    assert run(folder, "rlhf", FEW, *WORDS) == 0
    assert stamps == {
        name: (stages / name / "model.safetensors").stat().st_mtime_ns for name in stamps
    }
    record = json.loads((folder / "out" / "run.json").read_text())
    assert (record["needs_positives"], record["needs_preferences"]) == (True, True)
    assert [cost["stage"] for cost in record["costs"]] == ["sft", "reward", "rl"] and record[
        "cost"
    ]["generated_tokens"] > 0
    assert set(record["stops"]) == {"sft", "reward", "rl"}
    rl, taken = record["stops"]["rl"]["curve"], record["costs"][-1]["seconds"]
    assert [point["step"] for point in rl] == sorted({point["step"] for point in rl})
    assert rl[0]["step"] == 0 and "utility" in rl[0]  # from before the kill, too
    assert [point["seconds"] for point in rl] == sorted(point["seconds"] for point in rl)
    assert rl[0]["seconds"] == 0.0 and 0 < rl[-1]["seconds"] <= taken + 1e-3
    assert (
        "not under" in record["stops"]["sft"]["reason"]
    )  # a random model says nothing of it: the rate is 0 from the start
    evaluation = json.loads((folder / "out" / "eval.json").read_text())
    assert "reward model of rlhf" in evaluation["scorers"]["utility_reward"]["name"]
    assert evaluation["models"]["original"]["normal"]["utility_reward"]["n"] > 0


def test_rlhf_s_reward_model_scores_all_rows_and_its_time_is_the_measure(folder):
    methods = [
        {"name": "ours", "method": "unlikelihood", "max_steps": 2, "save_steps": 1},
        {"name": "full", "method": "rlhf", "stages": FEW},
    ]
    data = {"models": str(folder / "m"), "forget": str(folder / "pairs.jsonl")}
    options = {"out": str(folder / "c"), **data, "methods": methods, "settings": RULE}
    out = compare(options)
    cells = json.loads((out / "comparison.json").read_text())["cells"]
    assert all(cell["sets"]["normal"]["utility_reward"]["n"] > 0 for cell in cells)
    table = (out / "comparison.md").read_text()
    assert "| % of rlhf |" in table and "reward: the reward model of rlhf" in table
    full = next(line for line in table.splitlines() if "| full |" in line)
    assert "| 100.0 |" in full
    assert compare(options) == out and (out / "comparison.md").read_text() == table


@pytest.mark.parametrize(
    ("method", "stages", "more", "words"),
    [
        ("sft", {"rl": {}}, [], "stage of sft"),
        ("sft", 3, [], "option 'stages' is 3"),
        ("sft", {"sft": {"learning_speed": 1}}, [], "learning_speed"),
        ("sft", {}, ["learning_rate=1e-4"], "option 'learning_rate' is one of unlearning"),
        ("sft", {}, ["--frozen-layers", "1"], "option 'frozen_layers' is one of unlearning"),
        ("sft", {}, ["patience=0"], "patience is 0"),
        (
            "sft",
            {},
            ["patience=2"],
            "needs a validation split to watch, and the data has none; set",
        ),
        ("sft", {}, ["--lora"], "option 'lora' is one of unlearning"),
        ("ga", {"sft": {}}, [], "option 'stages' is for the baselines"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(
    folder, capsys, method, stages, more, words
):
    assert run(folder, method, stages, *more) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "Traceback" not in said
    assert not (folder / "out").exists()


def test_rows_without_good_answers_are_refused_by_name(folder, capsys):
    bare = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in PAIRS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert run(folder, "sft", {}) == 2
    assert "pairs.jsonl, line" in " ".join(capsys.readouterr().err.split())
