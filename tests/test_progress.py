"""What a long stage shows, on a terminal and in a log."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from unteach import progress
from unteach.progress import Display


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.fixture
def display():
    return Display(Console(file=io.StringIO(), width=200))


def lines(display):
    return display.console.file.getvalue().splitlines()


def test_a_log_gets_a_line_at_the_start_every_ten_seconds_and_at_the_end(display, clock):
    with display.stage("Teaching", 40) as stage:
        for step in range(1, 5):
            clock.seconds += 6
            stage.update(10 * step, note=f"loss {step}")
    assert lines(display) == [
        "Teaching ...",
        "  Teaching: 20 of 40, 12 s, about 12 s left loss 2",
        "  Teaching: 40 of 40, 24 s, about 0 s left loss 4",
        "  Teaching: done in 24 s loss 4",
    ]


def test_without_a_total_or_a_first_step_no_time_is_guessed(display, clock):
    with display.stage("Asking") as stage:
        clock.seconds += 11
        stage.update(0)
        clock.seconds += 11
        stage.update(3)
    assert lines(display)[1:3] == ["  Asking: 0, 11 s", "  Asking: 3, 22 s"]


def test_a_note_and_a_total_stay_until_others_come(display, clock):
    with display.stage("Asking") as stage:
        stage.update(1, 5, note="a")
        clock.seconds += 20
        stage.update(2)
    assert lines(display)[1] == "  Asking: 2 of 5, 20 s, about 30 s left a"


def test_seconds_of_a_stage_add_up_even_where_it_fails(display, clock):
    with display.stage("Asking"):
        clock.seconds += 3
    with pytest.raises(KeyError), display.stage("Asking"):
        clock.seconds += 4
        raise KeyError
    assert display.seconds == {"Asking": 7.0}


def test_names_in_brackets_are_printed_as_they_are(display):
    """rich takes `[name]` for a style and `[/name]` for its end."""
    display.print("runs/demo[llama] and runs/[/x]")
    with display.stage("Loading runs/demo[llama]") as stage:
        stage.update(1, note="[best]")
    printed = lines(display)
    assert printed[0] == "runs/demo[llama] and runs/[/x]"
    assert printed[1] == "Loading runs/demo[llama] ..."
    assert printed[2].startswith("  Loading runs/demo[llama]: done in 0 s [best]")


def test_a_terminal_gets_a_bar_with_title_count_and_note():
    display = Display(
        Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    )
    with display.stage("Teaching [a]", 40) as stage:
        stage.update(10, note="loss [2]")
    shown = display.console.file.getvalue()
    assert "Teaching [a]" in shown and "10/40" in shown and "loss [2]" in shown


def test_a_stage_within_another_has_a_bar_under_its_own():
    """rich shows one live display at a time."""
    display = Display(
        Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    )
    with display.stage("Unlearning", 40) as stage:
        with display.stage("Reading", 3) as inner:
            inner.update(3)
        stage.update(40)
    shown = display.console.file.getvalue()
    assert "Reading" in shown and "3/3" in shown and "40/40" in shown
    assert set(display.seconds) == {"Unlearning", "Reading"}


def test_a_quiet_display_prints_nothing_and_still_counts_seconds(capsys, clock):
    display = Display(quiet=True)
    with display.stage("Asking", 3) as stage:
        clock.seconds += 11
        stage.update(1)
    display.print("x")
    assert capsys.readouterr().out == "" and display.seconds == {"Asking": 11.0}
