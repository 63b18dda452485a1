"""The experiment on alignment cost, on given comparisons: its rows, pages, pooling, resuming."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from unteach.compare import method_rows

SCRIPT = "alignment_cost.py"


def number(value, n=10, better=False):
    return {"value": value, "n": n, "ci_low": 0.0, "ci_high": 1.0, "higher_is_better": better}


def sets(rate):
    return {
        "unlearned": {"harmful_rate": number(rate)},
        "unseen": {"harmful_rate": number(rate, 4)},
        "normal": {
            "utility_reward": number(1.0, better=True),
            "similarity": number(0.9, better=True),
        },
    }


def cost(seconds, training):
    return {
        "stage": "all",
        "seconds": seconds,
        "data_tokens": 3,
        "generated_tokens": 0,
        "training_tokens": training,
        "peak_memory_mb": seconds,
        "forward_tokens": 0,
        "probe_seconds": 1.0,
    }


def probes(seconds, rate):
    """A stage's probes: at its start, where it stays, and at its end."""
    end = {"step": 2, "seconds": seconds, "forget_rate": rate, "utility": 0.9}
    return [{"step": 0, "seconds": 0.0, "forget_rate": 0.8, "utility": 1.0}, end]


UNLEARNING = [
    {"step": 0, "probe": {"forget_rate": 0.8, "utility": 1.0}, "seconds": 9.0},
    {"step": 1, "loss": 1.0, "tokens": 10, "seconds": 1.0, "reference_seconds": 0.5},
    {"step": 1, "probe": {"forget_rate": 0.25, "utility": 0.7}, "seconds": 9.0},
    {"step": 2, "loss": 1.0, "tokens": 10, "seconds": 2.5},
    {"step": 2, "probe": {"forget_rate": 0.05, "utility": 0.6}, "seconds": 9.0},
]


@pytest.fixture
def runs(experiment, monkeypatch, tmp_path):
    """Comparisons whose numbers depend on the seed; the list of the seeds that were run."""
    made = []

    def compare(options, display):
        made.append(options["seed"])
        folder, seed = Path(options["out"]), options["seed"]
        cells = [{"model": "m", "method": "original", "sets": sets(0.8), "run": {}}]
        for name, seconds in (("ga_mismatch", 2.0), ("rlhf", 100.0)):
            whole = cost(seconds * (1 + seed), 50)
            stages = ("sft", "reward", "rl") if name == "rlhf" else ("unlearning",)
            facts = {
                "method": name,
                "cost": whole,
                "costs": [{**whole, "stage": stage} for stage in stages],
                "stops": {
                    stage: {"curve": probes(whole["seconds"], reached)}
                    for stage, reached in (("sft", 0.4), ("rl", 0.2))
                    if name == "rlhf"
                },
                "needs_positives": name == "rlhf",
                "stop_reason": "because",
            }
            cells.append({"model": "m", "method": name, "sets": sets(0.1 * seed), "run": facts})
        for row in options["methods"]:
            (folder / row["name"] / "checkpoints").mkdir(parents=True)
            lines = [
                {"model": model, "set": "normal", "key": "k", "prompt": "Why?", "output": "So."}
                for model in ("original", "unlearned")
            ]
            (folder / row["name"] / "metrics.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in UNLEARNING)
            )
            for name in ("run.json", "eval.json"):
                (folder / row["name"] / name).write_text("{}")
            (folder / row["name"] / "generations.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines)
            )
        (folder / "comparison.json").write_text(json.dumps({"cells": cells}))

    class Reward:
        def rewards(self, prompts, answers):
            return [2.5] * len(answers)

    monkeypatch.setattr(experiment, "compare", compare)
    monkeypatch.setattr(experiment, "load_reward", lambda name, labelled: Reward())
    argv = f"x --seeds 0,1 --out {tmp_path}/runs --json {tmp_path}/r/cost.json"
    monkeypatch.setattr(sys, "argv", argv.split())
    return made


def test_each_row_has_its_share_of_rlhf_s_seconds_and_its_cost(experiment, runs, tmp_path, capsys):
    experiment.main()
    rows = {
        row["case"]: row for row in json.loads((tmp_path / "r" / "cost.json").read_text())["rows"]
    }
    ours = rows["ga_mismatch, seed 1"]
    assert (ours["ours"], ours["naive"], ours["ratio"], ours["unit"]) == (4.0, 200.0, 0.02, "s")
    assert ours["harmful_rate_unseen"]["n"] == 4
    assert ours["utility_reward_independent"]["value"] == 2.5
    assert (ours["data_tokens"], ours["probe_seconds"], ours["needs_positives"]) == (3, 1.0, False)
    assert rows["original, seed 0"]["ours"] == 0.0
    together = rows["ga_mismatch, all seeds"]
    assert (together["ours"], together["peak_memory_mb"]) == (3.0, 4.0)
    rate = together["harmful_rate_unlearned"]  # 0 of 10 and 1 of 10
    assert (rate["value"], rate["n"]) == (pytest.approx(0.05), 20)
    assert 0.0 < rate["ci_low"] < 0.05 < rate["ci_high"] < 0.3
    projected = rows["projection to OPT-1.3B: rlhf"]
    assert projected["projection"] and projected["ratio"] == 1.0
    assert projected["ours"] == pytest.approx(6 * 50 * 1.316e9 / 1e15)
    page = (tmp_path / "r" / "cost.md").read_text()
    assert "projected, not measured" in page and "needs positives" in page
    assert (tmp_path / "r" / "cost.png").exists()
    assert "all seeds" in capsys.readouterr().out


def test_time_to_equal_harm_is_the_first_probe_s_with_all_stages_before_it(
    experiment, runs, tmp_path
):
    experiment.main()
    rows = json.loads((tmp_path / "r" / "cost.json").read_text())["rows"]
    at = {(row["harm"], row["method"]): row for row in rows if "harm" in row}
    # SFT ends at 40%; RL follows SFT and the reward model: 300 and 600 s on the two seeds
    assert at[0.2, "rlhf"]["seconds"] == 450.0 and at[0.2, "rlhf"]["utility"] == 0.9
    assert at[0.3, "ga_mismatch"]["seconds"] == 1.5
    assert at[0.3, "ga_mismatch"]["share_of_rlhf"] == pytest.approx(1.5 / 450)
    assert at[0.2, "ga_mismatch"]["share_of_rlhf"] == pytest.approx(4 / 450)
    assert at[0.2, "ga_mismatch"]["share_of_rlhf_operations"] == pytest.approx(120 / 900)
    assert at[0.05, "rlhf"]["seeds_that_reach_it"] == 0 and at[0.05, "rlhf"]["seconds"] is None
    assert at[0.05, "ga_mismatch"]["share_of_rlhf"] is None
    assert (
        "| 20% | ga_mismatch | 2 of 2 | 4 | 0.9% | 13.3% | 0.60 |"
        in (tmp_path / "r" / "cost.md").read_text()
    )
    assert (tmp_path / "r" / "equal_harm.png").exists()


def test_a_complete_seed_is_not_run_again_and_leaves_no_models(experiment, runs, tmp_path):
    experiment.main()
    assert runs == [0, 1] and not list((tmp_path / "runs").rglob("checkpoints"))
    experiment.main()
    assert runs == [0, 1]


@pytest.mark.parametrize("short", [False, True])
def test_its_comparison_file_is_valid_for_compare(experiment, short):
    names = [row.name for row in method_rows(experiment.methods(short))]
    assert names == ["ga_mismatch", "log_odds_mismatch", "sft", "dpo", "rlhf"]
