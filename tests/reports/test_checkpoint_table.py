"""The same prompt's answers at several steps."""

from __future__ import annotations

import json

import pytest

from unteach.reports.report import checkpoint_table


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"model": "original", "set": "unlearned", "key": key, "prompt": f"Who is\n{key}?"}
        for key in ("k1", "k2", "k3")
    ]
    rows.append({"model": "original", "set": "normal", "key": "n1", "prompt": "What?"})
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "work").mkdir()
    for step, text in ((0, "A | B"), (200, "A"), (1000, " ")):
        (tmp_path / "work" / f"said-at-{step}.json").write_text(
            json.dumps({"k1": text, "k3": f"{step}"})
        )
    return tmp_path


def test_steps_stand_in_order_and_cells_stay_cells(folder):
    table = checkpoint_table(folder)
    assert table.splitlines()[0] == "| prompt | before | step 200 | step 1000 |"
    assert table.splitlines()[2] == r"| Who is k1? | A \| B | A | (nothing) |"
    assert len(table.splitlines()) == 4, "k2 was not probed"


def test_rows_can_be_chosen(folder):
    assert checkpoint_table(folder, ["k3"]).splitlines()[2:] == ["| Who is k3? | 0 | 200 | 1000 |"]


def test_hidden_texts_stay_hidden(folder):
    (folder / "generations.jsonl").write_text(
        json.dumps({"model": "original", "set": "unlearned", "key": "k1"}) + "\n"
    )
    assert checkpoint_table(folder) == ""


def test_a_run_without_probes_has_no_such_table(folder):
    for path in (folder / "work").iterdir():
        path.unlink()
    assert checkpoint_table(folder) == ""
