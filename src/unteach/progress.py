"""What a long stage shows while it works: what it does, how far it is, how long it still takes."""

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
    """One running stage. On a terminal a bar; elsewhere a line when it starts, every ten seconds,
    and when it ends.
    """

    def __init__(self, console: Console, title: str, total: int | None) -> None:
        self.console, self.title, self.total = console, title, total
        self.started = self.printed = time.monotonic()
        self.done = 0
        self.note = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(
                *columns, TextColumn("{task.fields[note]}", markup=False), console=console
            )
            self._task = self._bar.add_task(title, total=total, note="")
            self._bar.start()
        else:
            console.print(f"{title} ...", highlight=False, markup=False)

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Sets how far the stage is."""
        self.done, self.total = done, total or self.total
        self.note = self.note if note is None else note
        if self._bar:
            self._bar.update(self._task, completed=done, total=self.total, note=self.note)
        elif time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            spent = self.printed - self.started
            left = (
                f", about {spent / done * (self.total - done):.0f} s left"
                if done and self.total
                else ""
            )
            of = f" of {self.total}" if self.total else ""
            self.console.print(
                f"  {self.title}: {done}{of}, {spent:.0f} s{left} {self.note}".rstrip(),
                highlight=False,
                markup=False,
            )

    def close(self) -> None:
        """Ends the display."""
        if self._bar:
            self._bar.stop()
        else:
            self.console.print(
                f"  {self.title}: done in {time.monotonic() - self.started:.0f} s {self.note}".rstrip(),
                highlight=False,
                markup=False,
            )


class Display:
    """Stages on one console, of several processes that of the main one; remembers how many seconds
    each took.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet or not is_main_process())
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Stage]:
        """A stage for the time of the block."""
        stage = Stage(self.console, title, total)
        try:
            yield stage
        finally:
            stage.close()
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - stage.started

    def say(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, highlight=False, markup=False)


def step_display(stage: Stage) -> Callable[[dict[str, float]], None]:
    """A hook for `UnlearningTrainer.on_step` that shows the newest probe and the retain KL."""
    notes: dict[str, str] = {}

    def show(record: dict[str, float]) -> None:
        if "probe_forget_rate" in record:
            notes["probe"] = (
                f"still said {record['probe_forget_rate']:.0%}, kept {record['probe_utility']:.0%}"
            )
        else:
            notes["kl"] = f"retain KL {record.get('retain_kl', 0):.3f}"
        stage.update(int(record["step"]), note="; ".join(notes.values()))

    return show
