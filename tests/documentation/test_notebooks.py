"""The notebooks run on a tiny model; their stored outputs are small and from one whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from test_pages_run import Encoder

from unteach.evaluation import similarity

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
TINY = {
    r'^MODEL = ".*"': 'MODEL = "tiny"',
    r"^STEPS = \{\}": "STEPS = {'max_steps': 1, 'hold': 99, 'paraphrases': 0, 'max_new_tokens': 4}",
    r"^(TEACH_)?STEPS = \d+": r"\1STEPS = 1",
    r"METHODS = .*": 'METHODS = ["log_odds_mismatch", "npo"]',
}


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, saved_model):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(similarity, "_encoder", lambda name: Encoder())
    (tmp_path / "tiny").symlink_to(saved_model)
    names: dict[str, Any] = {}
    for cell in code(path):
        if "install" in cell["metadata"].get("tags", []):
            continue
        source = "".join(cell["source"])
        for pattern, tiny in TINY.items():
            source = re.sub(pattern, tiny, source, flags=re.MULTILINE)
        exec(compile(source, path.name, "exec"), names)
    assert any((tmp_path / "runs").glob("*/eval.json"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_small_whole_and_of_no_machine(path):
    assert path.stat().st_size < 100_000
    counts = [cell["execution_count"] for cell in code(path)]
    whole = list(range(1, len(counts) + 1))
    assert counts in (whole, [None] * len(counts)), "run the notebook from its beginning"
    for cell in code(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert not re.search(r"/(root|home|tmp|work)/", json.dumps(output))
