"""Progress of long stages: title, count, seconds, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unteach.processes import is_main_process


class Stage:
    """One running stage: a bar on a terminal; elsewhere a line at its start, every ten seconds, and
    at its end.

    Args:
        outer (`Stage`, *optional*): the stage that this one is part of, under whose bar its own is.
    """

    def __init__(
        self, console: Console, title: str, total: int | None, outer: Stage | None = None
    ) -> None:
        self.console, self.title, self.total = console, title, total
        self.started = self.printed = time.monotonic()
        self.note = ""
        self._bar: Progress | None = outer._bar if outer else None
        self._outermost = self._bar is None
        if self._bar:
            self._task = self._bar.add_task(title, total=total, note="")
        elif console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, note="")
            self._bar.start()
        else:
            self._print(f"{title} ...")

    def _print(self, text: str) -> None:
        self.console.print(text.rstrip(), highlight=False, markup=False)

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Sets how far the stage is; a total and a note stay until others are given."""
        self.total = total or self.total
        self.note = self.note if note is None else note
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=done, total=self.total, note=self.note)
        elif now - self.printed > 10:
            self.printed, spent = now, now - self.started
            of = f" of {self.total}" if self.total else ""
            remaining = spent / done * (self.total - done) if done and self.total else None
            left = "" if remaining is None else f", about {remaining:.0f} s left"
            self._print(f"  {self.title}: {done}{of}, {spent:.0f} s{left} {self.note}")

    def close(self) -> None:
        """Ends the display."""
        if self._bar:
            self._bar.stop_task(self._task)
            if self._outermost:
                self._bar.stop()
        else:
            seconds = time.monotonic() - self.started
            self._print(f"  {self.title}: done in {seconds:.0f} s {self.note}")


class Display:
    """Stages on one console, that of the main process; `seconds` holds how long each took."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet or not is_main_process())
        self.seconds: dict[str, float] = {}
        self._open: list[Stage] = []

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Stage]:
        """A stage for the time of the block, perhaps a part of another one."""
        stage = Stage(self.console, title, total, self._open[-1] if self._open else None)
        self._open.append(stage)
        try:
            yield stage
        finally:
            self._open.remove(stage)
            stage.close()
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - stage.started

    def print(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, highlight=False, markup=False)


def step_display(stage: Stage) -> Callable[[dict[str, float]], None]:
    """A hook for `UnlearningTrainer.on_step` that shows the newest probe and the retain KL."""
    notes: dict[str, str] = {}

    def show(record: dict[str, float]) -> None:
        if "probe_forget_rate" in record:
            names = ("forget_rate", "utility", "neighbours", "readable")
            rates = [(name, record.get(f"probe_{name}")) for name in names]
            shown = [f"{name.replace('_', ' ')} {x:.0%}" for name, x in rates if x is not None]
            notes["probe"] = ", ".join(shown)
        else:
            notes["kl"] = f"retain KL {record.get('retain_kl', 0):.3f}"
        stage.update(int(record["step"]), note="; ".join(notes.values()))

    return show
