"""Collectives over the processes of one run; with one process each returns its argument at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

from unteach.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
REDUCE_BYTES = 64 * 2**20
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Long, as the main process may score all answers while the others wait; a process that is gone is
noticed at once all the same.
"""
LOST_PROCESS = (
    "another process of this run is gone (killed, out of memory, or its machine is unreachable);"
    " the same command again goes on from the last checkpoint"
)


def _state(*, on_cpu: bool = False) -> Any:
    """Accelerate's `PartialState`; `None` where a launcher started only this process."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        return None
    import torch
    from accelerate import PartialState

    cpu = on_cpu or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=COLLECTIVE_TIMEOUT)
    return state if state.num_processes > 1 else None


def init_process_group(*, on_cpu: bool = False) -> None:
    """Initialises the process group; the first call of all decides the device and the timeout."""
    _state(on_cpu=on_cpu)


def process_count() -> int:
    """World size."""
    state = _state()
    return 1 if state is None else int(state.num_processes)


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files, prints and decides; needs no process group."""
    return int(os.environ.get("RANK", "0") or 0) == 0


def is_local_main_process() -> bool:
    """Whether this is local rank 0, which writes what each machine needs for itself."""
    state = _state()
    return state is None or bool(state.is_local_main_process)


def barrier() -> None:
    """Returns when all processes have called it."""
    if (state := _state()) is not None:
        state.wait_for_everyone()


def destroy_process_group() -> None:
    """A barrier, then the end of the process group: connections whose peer has already closed them
    can abort a process at its exit.
    """
    if (state := _state()) is not None:
        state.wait_for_everyone()
        state.destroy_process_group()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """The result of `make` in every process; only the main process calls it.

    Raises:
        UserError: in every process, where `make` raises one.
    """
    state = _state()
    if state is None:
        return make()
    from accelerate.utils import broadcast_object_list

    result: list[Any] = [None, None]
    if state.is_main_process:
        try:
            result[0] = make()
        except UserError as error:
            result[1] = str(error)
    broadcast_object_list(result, from_process=0)
    if result[1] is not None:
        raise UserError(result[1])
    return cast(T, result[0])


def process_shard(items: Iterable[T]) -> Iterator[T]:
    """This process's shard: every n-th item, from its rank on."""
    state = _state()
    rank, count = (0, 1) if state is None else (state.process_index, state.num_processes)
    return islice(items, rank, None, count)


def all_gather(value: T) -> list[T]:
    """The value of each process, by rank."""
    if _state() is None:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def gather_shards(done: Sequence[T], total: int) -> list[T]:
    """The results for all `total` items, in their order, from those of each `process_shard`."""
    shards = all_gather(list(done))
    return [shards[i % len(shards)][i // len(shards)] for i in range(total)]


def all_reduce_tensor(values: Tensor | None) -> Tensor | None:
    """The sum of a tensor over processes of which each filled other rows and left the rest zero;
    exact, as x + 0 is x.

    Args:
        values (`Tensor` of shape (rows, ...), *optional*): on the CPU; `None` in a process without
            rows. Reduced in pieces of at most 64 MiB on the device of the process group.
    """
    state = _state()
    if state is None:
        return values
    import torch
    from accelerate.utils import reduce

    facts = all_gather(None if values is None else (tuple(values.shape), values.dtype))
    if not (found := [fact for fact in facts if fact]):
        return None
    shape, dtype = found[0]
    values = torch.zeros(shape, dtype=dtype) if values is None else values
    step = max(1, REDUCE_BYTES // max(1, values[:1].numel() * values.element_size()))
    for start in range(0, shape[0], step):
        part = values[start : start + step]
        part.copy_(reduce(part.to(state.device), "sum").cpu())
    return values


def is_lost_process(error: Exception) -> bool:
    """Whether an error of one of several processes means that it cannot reach another."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        return False
    words = ("closed by peer", "reset by peer", "Broken pipe", "gloo/transport")
    named = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return named or any(word in str(error) for word in words)
