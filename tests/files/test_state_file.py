"""Values by position in a file against a tensor in memory."""

from __future__ import annotations

import doctest
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.files import state_file
from unteach.files.state_file import StateFile


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(state_file, extraglobs={"torch": torch}).failed == 0


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    inner=st.sampled_from([(), (1,), (7,), (3, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_what_is_read_is_what_was_written_in_any_order(tmp_path_factory, rows, inner, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    path = tmp_path_factory.mktemp("states") / "a.bin"
    file, twin = (
        StateFile.create(path, (rows, *inner), dtype, "key"),
        torch.zeros(rows, *inner, dtype=dtype),
    )
    for _ in range(3):
        chosen = torch.randperm(rows, generator=generator)[: max(1, rows // 2)]
        chosen = chosen.sort().values if seed % 2 else chosen
        values = torch.randn(len(chosen), *inner, generator=generator)
        file.write(chosen, values)
        twin[chosen] = values.to(dtype)
    asked = torch.randint(0, rows, (2 * rows,), generator=generator)
    assert torch.equal(file[asked], twin[asked])
    assert torch.equal(StateFile(path)[torch.arange(rows)], twin)
    assert file[torch.zeros(0, dtype=torch.long)].shape == (0, *inner)


def test_only_the_owner_can_read_it_and_it_has_its_name_when_it_is_whole(tmp_path):
    file = StateFile.create(tmp_path / "part", (3, 2), torch.float32, "k")
    assert (tmp_path / "part").stat().st_mode & 0o077 == 0
    file.write(torch.tensor([0, 1, 2]), torch.ones(3, 2))
    file.rename(tmp_path / "whole")
    assert not (tmp_path / "part").exists()
    assert StateFile(tmp_path / "whole").key == "k" and torch.equal(
        file[torch.tensor([2])], torch.ones(1, 2)
    )


@pytest.mark.parametrize("damage", ["cut", "longer", "no header", "empty"])
def test_a_damaged_file_is_no_file_of_states(tmp_path, damage):
    path = tmp_path / "a.bin"
    StateFile.create(path, (3, 2), torch.float32, "k")
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-1], "longer": data + b"x", "no header": b"x" * len(data), "empty": b""}[
            damage
        ]
    )
    with pytest.raises(ValueError, match=r"a\.bin"):
        StateFile(path)


def test_a_position_that_is_not_there_is_refused(tmp_path):
    file = StateFile.create(tmp_path / "a.bin", (3, 2), torch.float32, "k")
    for position in (-1, 3):
        with pytest.raises(IndexError, match="not among the 3"):
            file[torch.tensor([position])]


def test_closed_files_leave_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        StateFile.create(tmp_path / "a.bin", (3, 2), torch.float32, "k")
    assert len(os.listdir("/proc/self/fd")) == before
