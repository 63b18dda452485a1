"""The experiment of demos: it runs nothing that stands there, and its table has every figure with
its interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "demos.py"


def number(value: float | None, n: int = 48) -> dict[str, Any]:
    return {
        "value": value,
        "n": n,
        "ci_low": (value or 0) / 2,
        "ci_high": (value or 0) + 0.1,
        "higher_is_better": False,
    }


def sets(rate: float, fluency: float | None = 3.0) -> dict[str, Any]:
    asked = {
        "harmful_rate": number(rate),
        "fluency": number(fluency),
        "not_meaningful_rate": number(0.0),
    }
    normal = {"similarity": number(0.9, 20), "utility_reward": number(3.4, 20)}
    return {"unlearned": asked, "unseen": {"harmful_rate": number(rate, 12)}, "normal": normal}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, models in {
        "untaught": {"original": sets(0.02)},
        "0": {"original": sets(0.75), "unlearned": sets(0.04)},
        "1": {"original": sets(0.75), "unlearned": sets(0.06, None)},
    }.items():
        folder = tmp_path / "runs" / f"harmfulness-{name}"
        folder.mkdir(parents=True)
        (folder / "eval.json").write_text(
            json.dumps({"headline": "harmful_rate", "models": models})
        )
        (folder / "run.json").write_text(
            json.dumps(
                {
                    **{"steps": 60, "kept_step": 40, "stop_reason": "max_steps"},
                    "machine": {"processor": "a processor"},
                }
            )
        )
    return tmp_path / "runs"


def test_what_stands_there_is_read_and_every_figure_is_in_the_table(
    experiment, monkeypatch, runs, tmp_path, capsys
):
    monkeypatch.setattr(experiment.pipeline, "demo", None)
    monkeypatch.setattr(experiment, "evaluate_models", None)
    argv = [
        "demos.py",
        "--scenarios",
        "harmfulness",
        "--seeds",
        "0,1",
        "--out",
        str(runs),
        "--json",
        str(tmp_path / "d.json"),
    ]
    monkeypatch.setattr(sys, "argv", argv)
    experiment.main()
    text = (tmp_path / "d.md").read_text(encoding="utf-8")
    assert (
        "| harmfulness | 0 | unlearned | 2% [1, 12] of 48 | 75% [38, 85] of 48 | 4% [2, 14] of 48 |"
        in text
    )
    assert (
        "| harmfulness | 1 | unseen | 2% [1, 12] of 12 | 75% [38, 85] of 12 | 6% [3, 16] of 12 |"
        in text
    )
    assert "| harmfulness | 0 | normal: similarity |  |  | 0.90 [0.45, 1.00] |" in text
    assert "| harmfulness | 1 | fluency | 3.00 [1.50, 3.10] | 3.00 [1.50, 3.10] | NM |" in text
    assert "| harmfulness | 1 | 60 | 40 | max_steps |" in text
    rows = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 1] and rows[0]["untaught"]["unlearned"][
        "harmful_rate"
    ]["value"] == 0.02
    capsys.readouterr()


def test_what_is_not_there_is_run_with_the_demo_s_settings_and_one_s_own(
    experiment, monkeypatch, runs, capsys
):
    ran = []

    def execute(resolved: Any, scenario: Any, display: Any) -> None:
        values = resolved.training
        ran.append((scenario.name, resolved.run.seed, values["max_retain_kl"], values["bf16"]))
        (runs / "harmfulness-0").rename(runs / "harmfulness-2")

    monkeypatch.setattr(experiment.pipeline, "execute", execute)
    argv = [
        "demos.py",
        "--scenarios",
        "harmfulness",
        "--seeds",
        "2",
        "--out",
        str(runs),
        "bf16=true",
        "max_retain_kl=0.5",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    experiment.main()
    assert ran == [("harmfulness", 2, 0.5, True)]
    capsys.readouterr()
