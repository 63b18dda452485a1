"""Output folders: named by their content, renamed, and locked against a second writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from unteach.errors import UserError
from unteach.files.folders import HOLDER, LOCK, FolderLock, content_key, set_aside

HOLD = """
import sys, time
from unteach.files.folders import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_held_folder_is_refused_and_the_holder_named(holder, tmp_path):
    with pytest.raises(
        UserError,
        match=rf"out is in use by process {holder.pid}, which has been writing into it since",
    ):
        FolderLock(tmp_path / "out").take()


def test_the_command_line_refuses_a_held_folder_with_exit_code_two(holder, model, tmp_path, capsys):
    from unteach.cli import main

    (tmp_path / "f.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"Who is {i}?", "completion": f"{i}."}) + "\n" for i in range(9)
        )
    )
    assert (
        main(
            [
                "run",
                "--model",
                model,
                "--forget",
                str(tmp_path / "f.jsonl"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert f"process {holder.pid}" in error and error.count("\n") == 1
    assert (
        main(["purge", str(tmp_path / "out")]) == 2
        and f"process {holder.pid}" in capsys.readouterr().err
    )


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / HOLDER).exists(), "it had no time to clean up"
    with FolderLock(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / HOLDER).read_text())["pid"] == os.getpid()


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with FolderLock(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_stays(tmp_path):
    with FolderLock(tmp_path / "out"):
        (tmp_path / "out" / "a").write_text("b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOCK, "a"]
    with FolderLock(tmp_path / "out"):
        pass


def test_a_lock_goes_on_in_the_new_folder_when_the_old_one_is_set_aside(tmp_path):
    out = tmp_path / "out"
    with FolderLock(out) as lock:
        (out / "config.yaml").write_text("a: 1")
        assert set_aside(out, "config.yaml", "a: 2") == tmp_path / "out-1"
        lock.take()
        (out / "b").write_text("c")
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            FolderLock(out).take()
        with FolderLock(tmp_path / "out-1"):
            pass
    with FolderLock(out):
        pass


def test_only_the_first_of_several_processes_takes_the_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with FolderLock(tmp_path / "out"):
        assert not (tmp_path / "out").exists()


def test_a_content_key_depends_on_the_content_and_not_on_the_order_of_names():
    assert (
        content_key({"a": 1, "b": [2]})
        == content_key({"b": [2], "a": 1})
        != content_key({"a": 1, "b": [3]})
    )
    assert len(content_key(None)) == 16


def test_a_folder_with_the_same_config_is_not_set_aside(tmp_path):
    folder = tmp_path / "run"
    assert set_aside(folder, "config.yaml", "a: 1") is None
    folder.mkdir()
    assert set_aside(folder, "config.yaml", "a: 1") is None
    (folder / "config.yaml").write_text("a: 1")
    assert set_aside(folder, "config.yaml", "a: 1") is None and folder.exists()


def test_a_folder_with_another_config_takes_the_first_free_name(tmp_path):
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir()
        (folder / "config.yaml").write_text(f"a: {number}")
        assert set_aside(folder, "config.yaml", "a: 9") == tmp_path / f"run-{number}"
        assert (
            not folder.exists()
            and (tmp_path / f"run-{number}" / "config.yaml").read_text() == f"a: {number}"
        )
