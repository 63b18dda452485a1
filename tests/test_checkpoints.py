"""A checkpoint is whole or does not count."""

from __future__ import annotations

import json

import pytest

from unteach.best_weights import BestWeights
from unteach.checkpoints import (
    content_key,
    latest_checkpoint,
    mark_complete,
    read_marker,
    set_aside,
    truncate_metrics,
    write_text_atomically,
)


def checkpoint(folder, step: int):
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    mark_complete(made, {"step": step})
    return made


def test_the_newest_whole_checkpoint_is_found_and_torn_ones_are_removed(tmp_path):
    for step in (2, 10, 20, 30, 40):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-40" / "unteach_state.json").unlink()
    (tmp_path / "checkpoint-30" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-20" / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    assert read_marker(tmp_path / "checkpoint-10") == {"step": 10}


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "nothing") is None


def test_metrics_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    truncate_metrics(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_file_is_replaced_in_one_go(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text_atomically(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_folder_of_another_run_is_set_aside_under_the_first_free_name(tmp_path):
    out = tmp_path / "out"
    write_text_atomically(out / "config.yaml", "seed: 0")
    assert set_aside(out, "config.yaml", "seed: 0") is None
    assert set_aside(out, "config.yaml", "seed: 1") == tmp_path / "out-1"
    write_text_atomically(out / "config.yaml", "seed: 1")
    assert set_aside(out, "config.yaml", "seed: 2") == tmp_path / "out-2"
    assert (tmp_path / "out-1" / "config.yaml").read_text() == "seed: 0" and not out.exists()


def test_a_key_names_plain_data():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 1, "b": 3})


def test_only_the_best_weights_stay(tmp_path):
    best = BestWeights(tmp_path)
    for step in (2, 4):
        best.folder(step).mkdir()
    best.keep_only(4)
    assert [path.name for path in tmp_path.iterdir()] == ["best-4"]
