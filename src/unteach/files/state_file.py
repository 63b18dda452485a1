"""Tensors by position in a file, read and written a few rows at a time.

A memory map would do the same by address space; but its pages count as the process's own, and a
long run ends up with the whole file resident.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADER_BYTES = 4096


def runs(positions: Tensor) -> Iterator[tuple[int, int, int]]:
    """The runs of consecutive numbers in `positions`: (index of the first, its number, how many).

    >>> list(runs(torch.tensor([4, 5, 6, 1, 9, 10])))
    [(0, 4, 3), (3, 1, 1), (4, 9, 2)]

    Args:
        positions (`Tensor` of shape (n,)): whole numbers.
    """
    breaks = (torch.diff(positions) != 1).nonzero().flatten().add(1).tolist()
    ends = [*breaks, len(positions)] if len(positions) else []
    for begin, end in zip([0, *breaks], ends, strict=False):
        yield begin, int(positions[begin]), end - begin


class StateFile:
    """Values of one shape and precision at numbered positions, in a file with access for its owner
    only.

    Args:
        path (`Path`): a file that `StateFile.create` made.

    Raises:
        ValueError: if the file is none of these, or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("r+b", buffering=0)
        try:
            header: dict[str, Any] = json.loads(self._file.read(HEADER_BYTES))
            self.key: str = header["key"]
            self.shape: tuple[int, ...] = tuple(header["shape"])
            self.dtype: torch.dtype = getattr(torch, header["dtype"])
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{path} is not a file of states") from None
        self._row_bytes = self.dtype.itemsize * torch.Size(self.shape[1:]).numel()
        if path.stat().st_size != HEADER_BYTES + self.shape[0] * self._row_bytes:
            raise ValueError(f"{path} does not have the length that its header says")

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> StateFile:
        """A new file of zeros of shape (positions, ...); `key` names what they are made from."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = {"key": key, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(json.dumps(facts).encode().ljust(HEADER_BYTES))
            file.truncate(HEADER_BYTES + dtype.itemsize * torch.Size(shape).numel())
        return cls(path)

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Writes `values` (n, ...) at `positions` (n,), in the file's precision."""
        values = values.detach().to("cpu", self.dtype).contiguous()
        data: bytes = values.view(-1).view(torch.uint8).numpy().tobytes()
        for place, number, count in runs(positions):
            piece = data[place * self._row_bytes : (place + count) * self._row_bytes]
            written = os.pwrite(self._file.fileno(), piece, HEADER_BYTES + number * self._row_bytes)
            if written != len(piece):
                raise OSError(f"{self.path} took {written} of {len(piece)} bytes")

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Values (n, ...) at `positions` (n,), on the CPU, in the file's precision."""
        data = bytearray(len(positions) * self._row_bytes)
        view = memoryview(data)
        for place, number, count in runs(positions):
            if not 0 <= number <= self.shape[0] - count:
                raise IndexError(
                    f"positions {number} to {number + count - 1} are not among the {self.shape[0]}"
                    f" of {self.path}"
                )
            piece = view[place * self._row_bytes : (place + count) * self._row_bytes]
            offset = HEADER_BYTES + number * self._row_bytes
            if os.preadv(self._file.fileno(), [piece], offset) != len(piece):
                raise OSError(f"{self.path} ended early")
        shape = len(positions), *self.shape[1:]
        if not data:
            return torch.zeros(shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(self.dtype).view(shape)

    def rename(self, path: Path) -> None:
        """Renames the finished file, once all of it is on the disk."""
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
        self.path = path
