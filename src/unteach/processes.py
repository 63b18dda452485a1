"""Several processes of one run that act as one: who writes, what is decided once, what is shared
out and put together again.

In a run of one process every function here does the plain thing at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from unteach.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SUM_BYTES = 64 * 2**20
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, of which one may be scoring all answers; one that is
lost is noticed at once all the same.
"""
LOST = (
    "another process of this run is gone (killed, out of memory, or its machine is unreachable);"
    " the same command again goes on from the last checkpoint"
)


def _state(*, on_cpu: bool = False) -> Any:
    """Accelerate's state, or `None` where a launcher has started only this process."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        return None
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu or not torch.accelerator.is_available(), timeout=PATIENCE)
    return state if state.num_processes > 1 else None


def init_process_group(*, on_cpu: bool = False) -> None:
    """Lets the processes of a launcher meet, if they have not: the first call of all says where
    they work, and how long they wait.
    """
    _state(on_cpu=on_cpu)


def process_count() -> int:
    """Number of processes of this run."""
    state = _state()
    return 1 if state is None else int(state.num_processes)


def is_main_process() -> bool:
    """Whether this is the one process that writes files, speaks and decides; known before the
    processes have met.
    """
    return int(os.environ.get("RANK", "0") or 0) == 0


def is_local_main_process() -> bool:
    """Whether this is the one process of its machine that writes what every machine needs for
    itself.
    """
    state = _state()
    return state is None or bool(state.is_local_main_process)


def wait_for_everyone() -> None:
    """Returns when all processes have come here."""
    state = _state()
    if state is not None:
        state.wait_for_everyone()


def destroy_process_group() -> None:
    """The processes of a run end together: each waits for the others and closes its connections,
    whose threads may else abort its end.
    """
    if process_count() > 1:
        wait_for_everyone()
        _state().destroy_process_group()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """What `make` returns in the main process, in every process; it is called there alone.

    Raises:
        UserError: in every process, where `make` raises one.
    """
    state = _state()
    if state is None:
        return make()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = make()
        except UserError as error:
            answer[1] = str(error)
    broadcast_object_list(answer, from_process=0)
    if answer[1] is not None:
        raise UserError(answer[1])
    value: T = answer[0]
    return value


def process_shard(items: Sequence[T]) -> list[T]:
    """This process's share of the items: every n-th, from its own number on."""
    state = _state()
    return list(items) if state is None else list(items[state.process_index :: state.num_processes])


def process_batches(batches: Iterable[T]) -> Iterator[T]:
    """The same of what is made on the way, such as batches."""
    state = _state()
    yield from (
        batches
        if state is None
        else islice(batches, state.process_index, None, state.num_processes)
    )


def gather_shards(done: Sequence[T], total: int) -> list[T]:
    """The results for all `total` items, in their order, from each process's results for its
    `process_shard`.
    """
    state = _state()
    if state is None:
        return list(done)
    from accelerate.utils import gather_object

    shares: list[list[T]] = gather_object([list(done)])
    return [shares[i % state.num_processes][i // state.num_processes] for i in range(total)]


def all_processes(true: bool) -> bool:
    """Whether it is true in every process."""
    state = _state()
    if state is None:
        return true
    from accelerate.utils import gather_object

    return all(gather_object([true]))


def total(value: float) -> float:
    """The sum of a number over all processes."""
    state = _state()
    if state is None:
        return value
    from accelerate.utils import gather_object

    return float(sum(gather_object([value])))


def all_reduce_tensor(values: Tensor | None) -> Tensor | None:
    """One tensor from the rows that each process has filled, the others' rows being zero in it;
    exact, as x + 0 is x.

    Args:
        values (`Tensor` of shape (rows, ...), *optional*): on the CPU; `None` in a process that had
            no row to fill. Summed in pieces of at most 64 MiB on the device that the processes talk
            through.
    """
    state = _state()
    if state is None:
        return values
    import torch
    from accelerate.utils import gather_object, reduce

    found = [
        shape
        for shape in gather_object(
            [None if values is None else (tuple(values.shape), values.dtype)]
        )
        if shape
    ]
    if not found:
        return None
    shape, dtype = found[0]
    values = torch.zeros(shape, dtype=dtype) if values is None else values
    step = max(1, SUM_BYTES // max(1, values[:1].numel() * values.element_size()))
    for start in range(0, shape[0], step):
        part = values[start : start + step]
        part.copy_(reduce(part.to(state.device), "sum").cpu())
    return values


def is_lost_process(error: Exception) -> bool:
    """Whether an error of one of several processes says that it cannot reach another."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        return False
    text = str(error)
    kind = {base.__name__ for base in type(error).__mro__}
    return "DistError" in kind or any(
        words in text
        for words in ("closed by peer", "reset by peer", "Broken pipe", "gloo/transport")
    )
