"""The reference model's values on completion tokens: computed once before the first step and
stored, or computed at each step.

Stored are final hidden states, which the reference's output head turns into exact distributions
over the whole vocabulary, log-probabilities, or hidden states of one layer.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unteach import models
from unteach.config.unlearning import UnlearningConfig
from unteach.data.packing import ROLE_IDS, Branch, Tree
from unteach.data.stream import Collator, forget_branches, retain_branches
from unteach.data.tokenization import EncodedRow
from unteach.files.state_file import StateFile
from unteach.models.parts import OutputHead
from unteach.models.token_statistics import token_statistics
from unteach.processes import (
    all_gather,
    all_reduce_tensor,
    barrier,
    is_local_main_process,
    process_count,
    process_shard,
)
from unteach.trainer.step import Batch, StepSpec, final_states, states_with_layer

TOKENS_PER_BATCH = 2048


class ReferenceModel:
    """The model that serves as the reference: a frozen copy (source `live`), or the model itself
    without its adapter, before the first step (`stored`) or at any time (`adapter_off`).

    Args:
        trained: the model without its data-parallel wrapper, before the first step.
        spec (`StepSpec`): precision, layout and layer of the forward pass.
        source (`str`): as in `UnlearningConfig.reference`.
    """

    def __init__(self, trained: Any, spec: StepSpec, source: str) -> None:
        self.trained, self.spec, self.source = trained, spec, source

    @cached_property
    def model(self) -> Any:
        """The model; a frozen copy is made when it is first needed."""
        if self.source != "live":
            return self.trained
        return copy.deepcopy(self.trained).eval().requires_grad_(False)

    @property
    def head(self) -> OutputHead:
        """Its output head."""
        return models.output_head(self.model)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @torch.no_grad()
    def values(self, batch: Batch, kinds: Collection[str]) -> dict[str, Tensor]:
        """By kind (see `Method.reference_values`), values of all completion tokens of a batch,
        shape (tokens, ...), from one forward pass.
        """
        found = {}
        with contextlib.nullcontext() if self.source == "live" else models.adapter_off(self.model):
            if "layer" in kinds:
                states, found["layer"] = states_with_layer(self.model, batch, self.spec)
            else:
                states = final_states(self.model, batch, self.spec)
        if "hidden" in kinds:
            found["hidden"] = states
        if "logp" in kinds:
            with self.spec.autocast():
                found["logp"] = token_statistics(
                    states, batch["target"], self.head, budget_bytes=self.spec.budget_bytes
                ).logp
        return found

    def value(self, batch: Batch, kind: str) -> Tensor:
        """The values of one kind."""
        return self.values(batch, [kind])[kind]

    def mean_nll(self, rows: Sequence[EncodedRow], collator: Collator) -> float:
        """The mean NLL of retain rows' completion tokens, in nats."""
        nll, count = 0.0, 0
        batches = row_batches(rows, retain_branches, collator, self.device)
        for batch in process_shard(batches):
            logp = self.value(batch, "logp")
            nll -= float(logp.double().sum())
            count += len(logp)
        return sum(all_gather(nll)) / sum(all_gather(count))


class StoredValues:
    """The reference's values at every completion token of one role: row after row, in a file of
    which each step reads what it needs, or in memory.

    Args:
        role (`str`), lengths (`Sequence[int]`): of the completions of each row, in tokens.
        folder (path, *optional*): where the file is; in memory if not given.
        key (`str`, *optional*): digest of model and rows; a file under another key is not used.
        dtype (`torch.dtype`, *optional*): precision of what is stored; default: that of the values.
    """

    def __init__(
        self,
        role: str,
        lengths: Sequence[int],
        folder: str | os.PathLike[str] | None = None,
        key: str = "",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.role, self.key, self.dtype = role, key, dtype
        self.starts = torch.tensor([0, *np.cumsum(lengths, dtype=np.int64).tolist()])
        self.path = None if folder is None else Path(folder) / f"states-{role}-{key[:16]}.bin"
        self.values: Tensor | StateFile | None = None

    def at(self, batch: Batch) -> Tensor:
        """Values of a batch's tokens of this role, in the batch's order, shape (tokens, ...), in
        float32 or wider.
        """
        assert self.values is not None, "values are stored first"
        values = self.values[self._positions(batch)[1]]
        values = values.float() if values.dtype == torch.bfloat16 else values
        return values.to(batch["target"].device)

    def _positions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(mask of this role's tokens in a batch, their positions among the stored values)."""
        chosen = batch["role"] == ROLE_IDS[self.role]
        rows, offsets = batch["row"][chosen].cpu(), batch["offset"][chosen].cpu()
        return chosen, self.starts[rows] + offsets

    def load(self) -> bool:
        """Whether every process finds a whole file under the key; its values are used then."""
        file: StateFile | None = None
        if self.path is not None and self.path.exists():
            with contextlib.suppress(ValueError):
                file = StateFile(self.path)
        whole = file and file.key == self.key and file.shape[0] == int(self.starts[-1])
        if not all(all_gather(bool(whole))):
            return False
        self.values = file
        return True

    def add(self, batch: Batch, values: Tensor) -> None:
        """Stores this role's part of the values of a batch's tokens."""
        chosen, positions = self._positions(batch)
        self.put(positions, values[chosen])

    def put(self, positions: Tensor, values: Tensor) -> None:
        """Stores values, shape (n, ...), at positions (n,) among those of all rows."""
        own = values.cpu()
        if self.values is None:
            shape, dtype = (int(self.starts[-1]), *own.shape[1:]), self.dtype or own.dtype
            in_file = self.path is not None and process_count() == 1
            self.values = self._file(shape, dtype) if in_file else torch.zeros(shape, dtype=dtype)
        if isinstance(self.values, StateFile):
            self.values.write(positions, own)
        else:
            self.values[positions] = own.to(self.values.dtype)

    def finish(self) -> None:
        """Brings the values of all processes together; where there is a folder, in the file."""
        values = self.values
        if not isinstance(values, StateFile):
            values = all_reduce_tensor(values)
        if values is None:
            raise ValueError(f"no {self.role} rows to compute the reference's values on")
        if self.path is not None:
            if is_local_main_process():
                if not isinstance(values, StateFile):
                    file = self._file(tuple(values.shape), values.dtype)
                    file.write(torch.arange(len(values)), values)
                    values = file
                values.rename(self.path)
            barrier()
            values = StateFile(self.path)
        self.values = values

    def _file(self, shape: tuple[int, ...], dtype: torch.dtype) -> StateFile:
        assert self.path is not None
        part = self.path.with_suffix(f".part{socket.gethostname()}{os.getpid()}")
        return StateFile.create(part, shape, dtype, self.key)


def store(
    stored: Sequence[StoredValues], batches: Iterable[Batch], compute: Callable[[Batch], Tensor]
) -> None:
    """Computes what is not stored yet of the roles of some rows, in one pass over all of them;
    `compute` maps a batch to the values of its completion tokens. Processes share the batches.
    """
    missing = [one for one in stored if not one.load()]
    if missing:
        with torch.no_grad():
            for batch in process_shard(batches):
                values = compute(batch)
                for one in missing:
                    one.add(batch, values)
    for one in missing:
        one.finish()


class StoredReference:
    """Values by role that were computed once, before the first step; hidden states need the
    reference's frozen head.
    """

    def __init__(self, values: Mapping[str, StoredValues], head: OutputHead | None = None) -> None:
        self.values, self.head = dict(values), head

    def at(self, batch: Batch) -> dict[str, Tensor]:
        """By role, the values of a batch's tokens, shape (tokens, ...)."""
        return {role: stored.at(batch) for role, stored in self.values.items()}


class LiveReference:
    """Values that are computed at each step, in one forward pass for all roles; `kinds` by role as
    in `Method.reference_values`, `stored` those that cannot be computed from the batch alone.
    """

    def __init__(
        self,
        model: ReferenceModel,
        kinds: Mapping[str, str],
        stored: Mapping[str, StoredValues] | None = None,
    ) -> None:
        self.model, self.head, self.stored = model, model.head, dict(stored or {})
        self.kinds = {role: kind for role, kind in kinds.items() if role not in self.stored}

    def at(self, batch: Batch) -> dict[str, Tensor]:
        """By role, the values of a batch's tokens, shape (tokens, ...)."""
        values = self.model.values(batch, set(self.kinds.values())) if self.kinds else {}
        device = batch["target"].device
        live = {
            role: values[kind][batch["role"] == ROLE_IDS[role]].to(device)
            for role, kind in self.kinds.items()
        }
        return live | {role: stored.at(batch) for role, stored in self.stored.items()}


Reference = StoredReference | LiveReference


def build_reference(
    model: ReferenceModel,
    rows: Mapping[str, Sequence[EncodedRow]],
    collator: Collator,
    config: UnlearningConfig,
    forget_states: Callable[[StoredValues], None] | None = None,
) -> Reference | None:
    """Everything that the method reads of the reference on the forget and the retain rows; `None`
    where it reads nothing. Hidden states are stored in files in the output folder.

    `forget_states` fills the values of the forget role where these are not simply the model's own
    on the rows.
    """
    method, layer = model.spec.method, model.spec.hooks.layer
    kinds = {role: k for role, k in method.reference_values.items() if rows[_set_of(role)]}
    if not kinds:
        return None
    found = dict[str, StoredValues]()
    dtype = torch.bfloat16 if config.reference_dtype == "bfloat16" else None
    if forget_states is not None and "forget" in kinds:
        lengths = [len(row.completion_ids) for row in rows["forget"]]
        found["forget"] = StoredValues("forget", lengths, dtype=dtype)
        with models.dropout_off(model.model):
            forget_states(found["forget"])
    if model.source != "stored":
        return LiveReference(model, kinds, found)
    folder = Path(str(config.output_dir)) / "reference"
    weights = ""
    for name, branches in (("forget", forget_branches), ("retain", retain_branches)):
        roles = [role for role in kinds if _set_of(role) == name and role not in found]
        if not roles:
            continue
        kind = kinds[roles[0]]
        assert {kinds[role] for role in roles} == {kind}, "values of a set of rows are of one kind"
        stored_as: dict[str, Any] = {}
        if kind != "logp":
            weights = weights or models.weights_hash(model.model)
            contents = (f"{row.prompt_ids}{row.completion_ids}" for row in rows[name])
            labelled = chain([f"layer {layer}" if kind == "layer" else name], contents)
            key = reference_key(weights, labelled, dtype or torch.float32, str(config.bf16))
            stored_as = {"folder": folder, "key": key, "dtype": dtype}
        for role in roles:
            ids = "preferred_ids" if role == "preferred" else "completion_ids"
            lengths = [len(getattr(row, ids)) for row in rows[name]]
            found[role] = StoredValues(role, lengths, **stored_as)
        batches = row_batches(rows[name], branches, collator, model.device)
        with models.dropout_off(model.model):
            store([found[role] for role in roles], batches, partial(model.value, kind=kind))
    if "hidden" not in kinds.values():
        return StoredReference(found)
    head = model.head
    return StoredReference(found, head.frozen() if head.weight.requires_grad else head)


def _set_of(role: str) -> str:
    return "retain" if role == "retain" else "forget"


def row_batches(
    rows: Sequence[EncodedRow],
    branches: Callable[[EncodedRow, int], list[Branch]],
    collator: Collator,
    device: torch.device,
) -> Iterator[Batch]:
    """All rows in batches of about `TOKENS_PER_BATCH` tokens, short ones first; `branches` makes
    the completions of a row from it and its number.
    """

    def tree(number: int) -> Tree:
        return Tree(rows[number].prompt_ids, tuple(branches(rows[number], number)))

    def batch(numbers: Sequence[int]) -> Batch:
        made = collator.batch([tree(number) for number in numbers])
        return {name: tensor.to(device) for name, tensor in made.items()}

    lengths = [len(tree(number)) for number in range(len(rows))]
    waiting: list[int] = []
    for number in sorted(range(len(rows)), key=lengths.__getitem__):
        if waiting and sum(lengths[i] for i in [*waiting, number]) > TOKENS_PER_BATCH:
            yield batch(waiting)
            waiting = []
        waiting.append(number)
    if waiting:
        yield batch(waiting)


def reference_key(
    model_hash: str, row_keys: Iterable[str], dtype: torch.dtype, template: Any = None
) -> str:
    """A digest that changes with the model, any row, their order, or the stored precision."""
    digest = hashlib.sha256(json.dumps([model_hash, str(dtype), template]).encode())
    for key in row_keys:
        digest.update(json.dumps(key).encode())
    return digest.hexdigest()
