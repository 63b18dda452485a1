"""`run.json` and the hash of rows."""

from __future__ import annotations

import json

import pytest

from unteach.data.rows import Row, rows_hash
from unteach.run.record import machine, model_files, peak_memory_bytes, versions, write_run_record

LINES = [
    {"step": 0, "probe": {"forget_rate": 1.0}},
    {"step": 1, "loss": 2.0, "tokens": 300, "seconds": 2.0},
    {"step": 2, "loss": 1.0, "tokens": 500, "seconds": 1.5},
    {"step": 2, "probe": {"forget_rate": 0.0}},
]


@pytest.fixture
def folder(tmp_path):
    def write(lines):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
        return tmp_path

    return write


def test_a_set_of_rows_has_one_hash_in_any_order_and_another_with_other_rows():
    rows = [Row("Who?", "He."), Row("Where?", "Here."), Row("Who?", "She.")]
    assert rows_hash(rows) == rows_hash(rows[::-1]) == rows_hash(iter(rows))
    hashes = {
        rows_hash(rows),
        rows_hash(rows[:2]),
        rows_hash([]),
        rows_hash([*rows, rows[0]]),
        rows_hash([Row("Who?", "He.", "text")]),
    }
    assert len(hashes) == 5 and all(len(name) == 16 for name in hashes)


def test_where_a_row_stands_is_no_part_of_its_hash():
    assert rows_hash([Row("Who?", "He.", "chat", "a.jsonl, line 1")]) == rows_hash(
        [Row("Who?", "He.", "chat", "b.csv, line 9")]
    )


def test_the_record_holds_versions_facts_and_sums_over_the_steps(folder):
    out = folder(LINES)
    record = write_run_record(out, {"seed": 3, "steps": 2})
    assert json.loads((out / "run.json").read_text(encoding="utf-8")) == record
    assert (record["seed"], record["steps"], record["tokens"], record["tokens_per_second"]) == (
        3,
        2,
        800,
        round(800 / 3.5, 1),
    )
    assert record["peak_memory_bytes"] > 2**20
    assert (
        set(record["versions"]) == {"unteach", "torch", "transformers", "python"}
        and record["versions"] == versions()
    )
    assert record["machine"] == machine() and record["machine"]["cores"]


def test_the_metrics_are_copied_to_the_run_s_folder(folder):
    out = folder(LINES)
    write_run_record(out, {})
    assert [
        json.loads(line)
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ] == LINES


def test_a_run_without_steps_has_no_speed(folder):
    record = write_run_record(folder(LINES[:1]), {})
    assert (record["tokens"], record["tokens_per_second"]) == (0, None)


def test_peak_memory_never_falls():
    before = peak_memory_bytes()
    assert peak_memory_bytes() >= before


def test_each_adapter_of_a_chain_has_its_own_hash(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("base", "first", "second")]
    for folder in folders:
        folder.mkdir()
        name = "model" if folder == folders[0] else "adapter_model"
        (folder / f"{name}.safetensors").write_bytes(folder.name.encode())
    chain = str(folders[0]), tuple(map(str, folders[1:]))
    monkeypatch.setattr("unteach.run.record.models.adapter_chain", lambda model: chain)
    found = model_files("second")
    assert len(set(found.values())) == 3
    assert list(found) == [
        "model.safetensors",
        "adapter 1/adapter_model.safetensors",
        "adapter 2/adapter_model.safetensors",
    ]
    (folders[1] / "adapter_model.safetensors").write_bytes(b"other")
    assert model_files("second") != found
