"""Figures of a run."""

from __future__ import annotations

import json
import struct

import pytest

from unteach.reports.figures import behaviour_figure, loss_figure, read_metrics

STEPS = [
    {"step": i, "loss": 1.0 / i, "forget_nll": 0.1 * i, "mismatch_nll": 3.0, "retain_kl": 0.01 * i}
    for i in range(1, 9)
]
PROBES = [
    {"step": i, "probe": {"train_rate": 1 - i / 8, "validation_rate": 1.0, "utility": 0.9}}
    for i in (0, 4, 8)
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "figures").mkdir()

    def write(lines):
        (tmp_path / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
        return tmp_path

    return write


def assert_is_a_picture(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 2000 and 300 <= height <= 1500
    assert 5_000 < len(data) < 500_000


def test_steps_and_probes_are_told_apart(folder):
    assert read_metrics(folder([PROBES[0], *STEPS, *PROBES[1:]])) == (STEPS, PROBES)


@pytest.mark.parametrize("kept_step", [None, 4])
def test_the_behaviour_figure_is_written_as_png(folder, kept_step):
    path = behaviour_figure(folder([*STEPS, *PROBES]), kept_step)
    assert path.name == "behaviour.png"
    assert_is_a_picture(path)


@pytest.mark.parametrize("budget", [None, 0.06])
def test_the_loss_figure_is_written_as_png(folder, budget):
    path = loss_figure(folder([*STEPS, *PROBES]), budget)
    assert path.name == "losses.png"
    assert_is_a_picture(path)


def test_a_method_with_fewer_terms_has_its_figure_too(folder):
    assert_is_a_picture(
        loss_figure(
            folder(
                [
                    {"step": 1, "loss": 1.0, "retain_nll": 1.0},
                    {"step": 2, "loss": 0.5, "retain_nll": 0.5},
                ]
            ),
            None,
        )
    )


def test_nothing_logged_gives_no_figure(folder):
    assert behaviour_figure(folder(STEPS), 4) is None
    assert loss_figure(folder(PROBES), None) is None


def test_drawing_leaves_a_caller_s_own_plots_alone(folder):
    """A notebook's backend stays, and no figure is left open (pyplot warns from the twentieth on)."""
    import matplotlib
    import matplotlib.pyplot as plt

    try:
        plt.switch_backend("svg")
        behaviour_figure(folder([*STEPS, *PROBES]), 4)
        loss_figure(folder([*STEPS, *PROBES]), 0.06)
        assert plt.get_fignums() == []
        assert matplotlib.get_backend().lower() == "svg"
    finally:
        plt.switch_backend("agg")
