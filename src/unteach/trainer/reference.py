"""What the reference model says of completions, without a second model and without a second
forward.

`StoredReference` keeps the reference's final hidden states, computed once before the first step;
its output head turns them into exact full-vocabulary log-probabilities. `LiveReference` asks a
frozen model (or the policy with its adapter off) at every step instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unteach.data.packing import ROLE_IDS
from unteach.files.state_file import StateFile
from unteach.models.output_head import OutputHead
from unteach.processes import (
    all_processes,
    all_reduce_tensor,
    is_local_main_process,
    process_batches,
    process_count,
    wait_for_everyone,
)

HiddenStates = Callable[[dict[str, Tensor]], Tensor]
TokenValues = Callable[[dict[str, Tensor]], Tensor]
"""From a batch to one value (or vector) for each of its completion tokens, shape (tokens, ...)."""


class StoredValues:
    """What the reference gave at every completion token of a set of rows: hidden states, or
    log-probabilities.

    Args:
        values (`Tensor` or `StateFile` of shape (positions, ...)): all rows' values, row after row.
        offsets (`list[int]`): row i owns `values[offsets[i]:offsets[i + 1]]`.
        role (`str`): role of the completions that the rows stand for.
    """

    def __init__(
        self, values: Tensor | StateFile, offsets: Sequence[int], role: str = "retain"
    ) -> None:
        self.values = values
        self.offsets = torch.as_tensor(list(offsets), dtype=torch.long)
        self.role = role

    def at(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Values for the tokens of this role in a batch, in the batch's order, shape (tokens, ...),
        float32 or wider.
        """
        chosen = batch["role"] == ROLE_IDS[self.role]
        values = self.values[
            self.offsets[batch["row"][chosen].cpu()] + batch["offset"][chosen].cpu()
        ]
        return (values.float() if values.dtype == torch.bfloat16 else values).to(device)


class LiveValues:
    """The same as a function that asks the reference at every step.

    Args:
        compute (`TokenValues`): batch to the values of *all* its completion tokens.
        role (`str`): role of the completions that are wanted.
    """

    def __init__(self, compute: TokenValues, role: str = "retain") -> None:
        self.compute = compute
        self.role = role

    @torch.no_grad()
    def at(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Values for the tokens of this role in a batch, shape (tokens, ...)."""
        return self.compute(batch)[batch["role"] == ROLE_IDS[self.role]].to(device)


Values = StoredValues | LiveValues


class StoredReference(StoredValues):
    """Final hidden states of the reference at every position that predicts a completion token of
    one role.

    Args:
        states (`Tensor` or `StateFile` of shape (positions, hidden)): all rows' states, row after
            row.
        offsets (`list[int]`): row i owns `states[offsets[i]:offsets[i + 1]]`.
        head (`OutputHead`): the reference's own output head, frozen.
        role (`str`, *optional*, defaults to `"retain"`): role of the completions that the rows
            stand for.
    """

    def __init__(
        self,
        states: Tensor | StateFile,
        offsets: Sequence[int],
        head: OutputHead,
        role: str = "retain",
    ) -> None:
        super().__init__(states, offsets, role)
        self.head = head

    def hidden(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """States for the tokens of this role in a batch, in the batch's order, shape (tokens,
        hidden), float32 or wider.
        """
        return self.at(batch, device)


class LiveReference(LiveValues):
    """The reference as a function from a batch to the hidden states at its predicting positions,
    called at every step.

    Args:
        hidden_states (`Callable`): batch to hidden states of *all* predicting positions, shape
            (tokens, hidden).
        head (`OutputHead`): its output head.
        role (`str`, *optional*, defaults to `"retain"`): role of the completions that are wanted.
    """

    def __init__(self, hidden_states: HiddenStates, head: OutputHead, role: str = "retain") -> None:
        super().__init__(hidden_states, role)
        self.head = head

    def hidden(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """States for the tokens of this role in a batch, shape (tokens, hidden)."""
        return self.at(batch, device)


Reference = StoredReference | LiveReference


def reference_key(
    model_hash: str, row_keys: Iterable[str], dtype: torch.dtype, template: Any = None
) -> str:
    """A digest that changes with the model, any row, their order, or the stored precision."""
    digest = hashlib.sha256(json.dumps([model_hash, str(dtype), template]).encode())
    for key in row_keys:
        digest.update(json.dumps(key).encode())
    return digest.hexdigest()


def build_stored_values(
    batches: Iterable[dict[str, Tensor]],
    lengths: Sequence[int],
    compute: TokenValues,
    *,
    role: str = "retain",
    dtype: torch.dtype | None = None,
    folder: str | os.PathLike[str] | None = None,
    key: str = "",
) -> StoredValues:
    """Runs the reference once over the rows of a role and keeps what it gives at their completion
    tokens.

    Of several processes each runs its share of the batches; then all have all values.

    Args:
        batches: batches whose rows of that role together are all rows, each once.
        lengths (`Sequence[int]`): number of completion tokens of each row.
        compute (`TokenValues`): batch to values of all its completion tokens, shape (tokens, ...).
        role (`str`): role of the completions.
        dtype (`torch.dtype`, *optional*): precision of what is stored; defaults to that of the
            values.
        folder (path, *optional*): where to keep them in a file, of which each step reads its rows
            alone; in memory if not given.
        key (`str`, *optional*): digest of model and rows; values found in `folder` under another
            key are not used.
    """
    offsets = [0, *np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()]
    path = None if folder is None else Path(folder) / f"states-{key[:16]}.bin"
    stored = _stored(path, key, offsets[-1])
    if all_processes(stored is not None):
        assert stored is not None
        return StoredValues(stored, offsets, role)
    part = None if path is None else path.with_suffix(f".part{socket.gethostname()}{os.getpid()}")
    values: Tensor | StateFile | None = None
    start = torch.as_tensor(offsets, dtype=torch.long)
    with torch.no_grad():
        for batch in process_batches(batches):
            chosen = batch["role"] == ROLE_IDS[role]
            found = compute(batch)[chosen].cpu()
            positions = start[batch["row"][chosen].cpu()] + batch["offset"][chosen].cpu()
            if values is None:
                shape, kept = (offsets[-1], *found.shape[1:]), dtype or found.dtype
                alone = part is not None and process_count() == 1
                values = (
                    StateFile.create(part, shape, kept, key)
                    if part is not None and alone
                    else torch.zeros(shape, dtype=kept)
                )
            if isinstance(values, StateFile):
                values.write(positions, found)
            else:
                values[positions] = found.to(values.dtype)
    if not isinstance(values, StateFile):
        values = all_reduce_tensor(values)
    if values is None:
        raise ValueError(f"no {role} rows to compute the reference's states on")
    if path is None or part is None:
        return StoredValues(values, offsets, role)
    if is_local_main_process():
        if not isinstance(values, StateFile):
            file = StateFile.create(part, tuple(values.shape), values.dtype, key)
            file.write(torch.arange(offsets[-1]), values)
            values = file
        values.rename(path)
    wait_for_everyone()
    return StoredValues(StateFile(path), offsets, role)


def _stored(path: Path | None, key: str, positions: int) -> StateFile | None:
    """Values that were stored under this key; `None` where there are none, or not all."""
    if path is None or not path.exists():
        return None
    try:
        stored = StateFile(path)
    except ValueError:
        return None
    return stored if stored.key == key and stored.shape[0] == positions else None


def build_stored_reference(
    batches: Iterable[dict[str, Tensor]],
    lengths: Sequence[int],
    hidden_states: HiddenStates,
    head: OutputHead,
    *,
    dtype: torch.dtype | None = None,
    folder: str | os.PathLike[str] | None = None,
    key: str = "",
    freeze_head: bool = True,
    role: str = "retain",
) -> StoredReference:
    """Runs the reference once over the rows of a role and keeps its final hidden states.

    Args:
        batches, lengths, dtype, folder, key, role: as in `build_stored_values`.
        hidden_states (`Callable`): batch to hidden states of its predicting positions, shape
            (tokens, hidden).
        head (`OutputHead`): the reference's head; copied if `freeze_head`, as training may change
            it.
    """
    frozen = head.frozen() if freeze_head else head
    stored = build_stored_values(
        batches, lengths, hidden_states, role=role, dtype=dtype, folder=folder, key=key
    )
    return StoredReference(stored.values, stored.offsets.tolist(), frozen, role)
