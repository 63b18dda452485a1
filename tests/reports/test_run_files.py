"""A broken result file is named with its field; a fault of ours in a report is not hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unteach.cli import main
from unteach.errors import UserError
from unteach.reports import report
from unteach.reports.run_files import check_shape

RESULT = {"value": 0.5, "n": 2, "ci_low": None, "ci_high": 0.9, "higher_is_better": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sets = {"unlearned": {"leak_rate": RESULT}}
    evaluation = {"models": {"original": sets, "unlearned": sets}, "headline": "leak_rate"}
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    (tmp_path / "run.json").write_text(json.dumps({"model": "m", "scenario": "run"}))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval.json", [], "its content is [], it must be a mapping"),
        ("eval.json", {}, "its content has no field 'models'"),
        ("eval.json", {"models": {"m": {"s": {"x": 3}}}}, "models.m.s.x is 3, it must be a mapp"),
        ("run.json", {"seconds": "long"}, "seconds is 'long', it must be a number"),
        ("run.json", {"seconds": True}, "seconds is True, it must be a number"),
        ("run.json", {"model": ["m"]}, "model is ['m'], it must be"),
        ("run.json", {"costs": [{}]}, "costs[0] has no field 'stage'"),
        ("attacks.json", {"left_out": {"traces": 1}}, "left_out.traces is 1, it must be text"),
    ],
)
def test_a_broken_file_is_named_with_its_field(folder, capsys, name, content, message):
    (folder / name).write_text(json.dumps(content))
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"{name} is broken: {message}" in error and error.count("\n") == 1


def test_unknown_fields_and_missing_optional_ones_pass():
    assert check_shape(Path("run.json"), {"more": [1, "x"]}) == {"more": [1, "x"]}
    with pytest.raises(UserError, match=r"metrics.jsonl is broken: \[0\] has no field 'step'"):
        check_shape(Path("metrics.jsonl"), [{"loss": 1.0}])


@pytest.mark.parametrize("fault", [KeyError("cost"), TypeError("unhashable"), ValueError("x")])
def test_a_fault_of_ours_in_a_report_is_not_called_a_broken_file(folder, monkeypatch, fault):
    def broken(*_):
        raise fault

    monkeypatch.setattr(report, "report_content", broken)
    with pytest.raises(type(fault)):
        main(["report", str(folder)])
