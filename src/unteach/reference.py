"""The reference model's distribution on the retain completions, without a second model and without a second forward.

`StoredReference` keeps the reference's final hidden states, computed once before the first step; its output head turns them into exact
full-vocabulary log-probabilities. `LiveReference` asks a frozen model (or the policy with its adapter off) at every step instead.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unteach.tokenwise import OutputHead

HiddenStates = Callable[[dict[str, Tensor]], Tensor]


class StoredReference:
    """Final hidden states of the reference at every position that predicts a retain completion token.

    Args:
        states (`Tensor` of shape (positions, hidden)): all rows' states, row after row.
        offsets (`list[int]`): row i owns `states[offsets[i]:offsets[i + 1]]`.
        head (`OutputHead`): the reference's own output head, frozen.
    """

    def __init__(self, states: Tensor, offsets: Sequence[int], head: OutputHead) -> None:
        self.states = states
        self.offsets = torch.as_tensor(list(offsets), dtype=torch.long)
        self.head = head

    def hidden(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """States for the retain tokens of a batch, in the batch's order, shape (retain tokens, hidden), float32 or wider."""
        index = self.offsets[batch["retain_row"].cpu()] + batch["retain_offset"].cpu()
        states = self.states[index]
        return (states.float() if states.dtype == torch.bfloat16 else states).to(device)


class LiveReference:
    """The reference as a function from a batch to the hidden states at its predicting positions, called at every step.

    Args:
        hidden_states (`Callable`): batch to hidden states of *all* predicting positions, shape (tokens, hidden).
        head (`OutputHead`): its output head.
    """

    def __init__(self, hidden_states: HiddenStates, head: OutputHead) -> None:
        self.hidden_states = hidden_states
        self.head = head

    @torch.no_grad()
    def hidden(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """States for the retain tokens of a batch, shape (retain tokens, hidden)."""
        return self.hidden_states(batch)[batch["role"] == 2].to(device)


Reference = StoredReference | LiveReference


def reference_key(model_hash: str, row_keys: Iterable[str], dtype: torch.dtype, template: Any = None) -> str:
    """A digest that changes with the model, any row, their order, or the stored precision."""
    text = json.dumps([model_hash, list(row_keys), str(dtype), template])
    return hashlib.sha256(text.encode()).hexdigest()


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
) -> StoredReference:
    """Runs the reference once over the retain rows and keeps its final hidden states.

    Args:
        batches: batches whose retain rows together are all rows, each once.
        lengths (`Sequence[int]`): number of completion tokens of each row.
        hidden_states (`Callable`): batch to hidden states of its predicting positions, shape (tokens, hidden).
        head (`OutputHead`): the reference's head; copied if `freeze_head`, as training may change it.
        dtype (`torch.dtype`, *optional*): precision of the stored states; defaults to that of the model's output.
        folder (path, *optional*): where to memory-map them; in memory if not given.
        key (`str`, *optional*): digest of model and rows; states found in `folder` under another key are not used.
    """
    offsets = [0, *np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()]
    frozen = head.frozen() if freeze_head else head
    path = None if folder is None else Path(folder) / f"states-{key[:16]}.pt"
    if path is not None and path.exists():
        stored = torch.load(path, mmap=True, weights_only=True)
        if stored["key"] == key and stored["states"].shape[0] == offsets[-1]:
            return StoredReference(stored["states"], offsets, frozen)
    states: Tensor | None = None
    start = torch.as_tensor(offsets, dtype=torch.long)
    with torch.no_grad():
        for batch in batches:
            hidden = hidden_states(batch)[batch["role"] == 2].cpu()
            if states is None:
                states = torch.zeros(offsets[-1], hidden.shape[-1], dtype=dtype or hidden.dtype)
            states[start[batch["retain_row"].cpu()] + batch["retain_offset"].cpu()] = hidden.to(states.dtype)
    if states is None:
        raise ValueError("no retain rows to compute the reference's states on")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_suffix(f".part{os.getpid()}")
        torch.save({"key": key, "states": states}, part)
        os.replace(part, path)
        states = torch.load(path, mmap=True, weights_only=True)["states"]
    return StoredReference(states, offsets, frozen)
