"""Checkpoints that are whole or do not count."""

from __future__ import annotations

import json

import pytest

from unteach.files.checkpoints import (
    MARKER,
    latest_checkpoint,
    mark_complete,
    read_marker,
    truncate_metrics,
)


@pytest.fixture
def make(tmp_path):
    """Writes a whole `checkpoint-STEP`."""

    def write(step):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights" * step)
        (folder / "optimizer.pt").write_bytes(b"state")
        mark_complete(folder, {"step": step, "retain_weight": 1.5})
        return folder

    return write


def test_a_whole_checkpoint_gives_back_its_state(make):
    assert read_marker(make(3)) == {"step": 3, "retain_weight": 1.5}


def test_a_checkpoint_may_be_marked_again(make):
    folder = make(3)
    mark_complete(folder, {"step": 4})
    assert read_marker(folder) == {"step": 4}


TEARS = {
    "a file is missing": lambda folder: (folder / "optimizer.pt").unlink(),
    "a file is cut": lambda folder: (folder / "model.safetensors").write_bytes(b"weig"),
    "a file is empty": lambda folder: (folder / "optimizer.pt").write_bytes(b""),
    "no marker": lambda folder: (folder / MARKER).unlink(),
    "a torn marker": lambda folder: (folder / MARKER).write_text('{"state": {"st'),
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_a_torn_checkpoint_does_not_count_and_is_removed(make, tmp_path, tear):
    whole, torn = make(2), make(10)
    tear(torn)
    assert read_marker(torn) is None
    assert latest_checkpoint(tmp_path) == whole
    assert not torn.exists() and whole.exists()


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(make, tmp_path):
    for step in (9, 100, 20):
        make(step)
    assert latest_checkpoint(tmp_path).name == "checkpoint-100"


def test_what_is_no_checkpoint_is_left_alone(make, tmp_path):
    make(1)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert latest_checkpoint(tmp_path).name == "checkpoint-1"
    assert (tmp_path / "checkpoint-best").is_dir() and (tmp_path / "checkpoint-7").is_file()


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_metrics_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 0, "probe": {}},
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 0.5},
    ]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '[1]\n{"loss": 3}\n{"step": 1, "lo',
        encoding="utf-8",
    )
    truncate_metrics(path, 2)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == lines[:3]
    truncate_metrics(path, -1)
    assert path.read_text(encoding="utf-8") == ""


def test_no_metrics_file_is_nothing_to_cut(tmp_path):
    truncate_metrics(tmp_path / "metrics.jsonl", 2)
    assert list(tmp_path.iterdir()) == []
