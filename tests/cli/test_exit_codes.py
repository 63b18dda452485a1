"""How a command ends: one sentence for what the user, the disk or the machine is at fault for, and
nothing hidden that is ours.
"""

from __future__ import annotations

import pytest
import torch

from unteach.cli.exit_codes import exit_code, named_files
from unteach.errors import UserError


def raises(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(28, "No space left on device", "out/model.safetensors"),
            "No space left on device (out/model.safetensors)",
        ),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 304410944 vs 304410836"
            ),
            "no space left on the disk",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "no space left on the disk",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "the memory is full; take a smaller per_device_train",
        ),
        (MemoryError(), "the memory is full"),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
            ),
            "the memory is full",
        ),
    ],
)
def test_what_is_not_our_fault_is_one_sentence_and_exit_code_two(capsys, error, sentence):
    assert exit_code(raises(error)) == 2
    said = capsys.readouterr().err
    assert said.startswith("unteach: ") and sentence in said and said.count("\n") == 1


def test_an_interruption_has_its_own_code(capsys):
    assert exit_code(raises(KeyboardInterrupt())) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_an_error_of_our_own_is_not_hidden():
    with pytest.raises(RuntimeError, match="a bug"):
        exit_code(raises(RuntimeError("a bug")))


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"output_dir": "runs/a"}, "runs/a/model/config.json"),
        ({"output_dir": "runs/a/b"}, "runs/a"),
        ({"settings": ["seed=1", "out=runs/c"]}, "runs/c"),
        ({"forget": "one.jsonl,two.jsonl"}, "two.jsonl"),
    ],
)
def test_a_file_error_on_a_path_that_the_user_named_is_one_sentence(capsys, options, path):
    def command() -> int:
        with named_files(options):
            raise PermissionError(13, "Permission denied", path)

    assert exit_code(command) == 2
    assert capsys.readouterr().err == f"unteach: Permission denied ({path})\n"


def test_the_paths_of_a_configuration_file_are_the_users(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(f"out: {tmp_path / 'out'}\n", encoding="utf-8")
    with pytest.raises(UserError, match="Not a directory"), named_files({"config": str(config)}):
        raise NotADirectoryError(20, "Not a directory", str(tmp_path / "out" / "work"))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/srv/unteach/template.html"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_any_other_file_error_is_our_own_and_is_raised(error):
    def command() -> int:
        with named_files({"output_dir": "runs/a", "model": "owner/name"}):
            raise error

    with pytest.raises(OSError, match=r"No such file|Connection reset"):
        exit_code(command)


@pytest.mark.parametrize("name", [".mm.part", ".mm.old.part", ".mm.412.part"])
def test_the_unfinished_part_of_a_named_place_is_named_too(name):
    error = OSError(30, "Read-only file system", f"runs/{name}")
    with pytest.raises(UserError, match="Read-only"), named_files({"merge": "runs/mm"}):
        raise error
    with pytest.raises(OSError, match="Read-only"), named_files({"merge": "runs/other"}):
        raise error
