"""The examples run, on a tiny model, and the ones that promise to be short are."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tiny_models import byte_level_bpe, tiny_model, write_rows

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(max_position_embeddings=1024).save_pretrained(folder / "model")
    byte_level_bpe(chat=True).save_pretrained(folder / "model")
    for name in ("forget", "retain"):
        write_rows(folder / f"{name}.jsonl", name, 16)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_file_is_forgotten_from_python(monkeypatch, inputs, tmp_path, capsys):
    run(
        monkeypatch,
        "forget_a_file.py",
        inputs / "model",
        inputs / "forget.jsonl",
        tmp_path / "out",
        "max_steps=2",
        "similarity_model=null",
    )
    assert "unlearned" in capsys.readouterr().out
    assert (tmp_path / "out" / "model" / "model.safetensors").exists() and (
        tmp_path / "out" / "report.md"
    ).exists()


def test_the_demo_runs_from_python(monkeypatch, inputs, tmp_path, capsys):
    monkeypatch.setattr("unteach.evaluation.scorers.load_error", lambda encoder: "not in this test")
    run(monkeypatch, "demo_from_python.py", tmp_path / "out", inputs / "model", "--short")
    assert "'higher_is_better': False" in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert set(evaluation["models"]["unlearned"]) == {
        "unlearned",
        "unseen",
        "kept",
        "kept_unseen",
        "normal",
    }
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "behaviour.png",
        "losses.png",
        "retain_kl.png",
    }


def test_the_trainer_alone(monkeypatch, inputs, tmp_path):
    run(
        monkeypatch,
        "trainer.py",
        inputs / "model",
        inputs / "forget.jsonl",
        inputs / "retain.jsonl",
        tmp_path / "out",
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_each_example_is_under_fifteen_lines_of_code():
    for path in EXAMPLES.glob("*.py"):
        code = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip() and not line.startswith(('"""', "#"))
        ]
        assert len(code) < 15, path.name
