"""The figures of a run."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from unteach.reports.figures import MAX_POINTS, STYLE, run_charts, svg_of
from unteach.reports.run_files import read_files

STEPS = [
    {"step": i, "loss": 1.0 / i, "forget_nll": 0.1 * i, "mismatch_nll": 3.0, "retain_kl": 0.01 * i}
    for i in range(1, 9)
]
PROBES = [
    {"step": i, "probe": {"train_rate": 1 - i / 8, "validation_rate": 1.0, "utility": 0.9}}
    for i in (0, 4, 8)
]


@pytest.fixture(autouse=True)
def dots(monkeypatch):
    """The resolution that users get."""
    monkeypatch.setitem(STYLE, "savefig.dpi", 200)


@pytest.fixture
def charts(tmp_path):
    """Draws the charts of a run with these lines in `metrics.jsonl`, by name."""

    def draw(lines, **run):
        (tmp_path / "eval.json").write_text('{"models": {"original": {}}}')
        (tmp_path / "run.json").write_text(json.dumps(run))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
        found = {chart.name: chart for chart in run_charts(tmp_path, read_files(tmp_path))}
        for name in found:
            assert_is_a_picture(tmp_path / "figures" / f"{name}.png")
        return found

    return draw


def assert_is_a_picture(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 2000 and 300 <= height <= 1500
    assert 5_000 < len(data) < 500_000


@pytest.mark.parametrize("kept", [None, 4])
def test_steps_and_probes_have_their_charts_and_the_kept_step_is_marked(charts, kept):
    found = charts([PROBES[0], *STEPS, *PROBES[1:]], kept_step=kept)
    assert list(found) == ["behaviour", "retain_kl", "losses"]
    for chart in found.values():
        assert ("kept: step 4" in chart.svg) == (kept is not None)
    text = found["behaviour"].description
    assert "forget rate: 1.00 at step 0, 0.00 at step 8" in text
    assert "forget rate (held out): 1.00 at step 0" in text and "utility" in text


@pytest.mark.parametrize("budget", [None, 0.06])
def test_the_budget_of_the_retain_kl_is_drawn(charts, budget):
    chart = charts(STEPS, max_retain_kl=budget)["retain_kl"]
    assert (">budget<" in chart.svg) == ("Budget: 0.06" in chart.description) == bool(budget)


def test_a_weight_that_changes_has_a_chart(charts):
    lines = [{**line, "retain_weight": line["step"]} for line in STEPS]
    assert "retain_weight" in charts(lines)
    assert "retain_weight" not in charts([{**line, "retain_weight": 1.0} for line in STEPS])


def test_a_method_with_fewer_terms_has_its_chart_too(charts):
    lines = [{"step": step, "loss": 1.0, "retain_nll": 1 / step} for step in (1, 2)]
    assert list(charts(lines)) == ["losses"]


def test_nothing_logged_gives_no_chart(charts):
    assert charts([]) == {}


def test_a_loss_that_is_not_finite_is_left_out(charts):
    lines = [*STEPS, {"step": 9, "loss": 1.0, "forget_nll": float("nan"), "retain_kl": None}]
    assert (
        "forget completions: 0.10 at step 1, 0.80 at step 8" in charts(lines)["losses"].description
    )


def test_a_long_run_is_thinned_out(charts):
    lines = [{"step": i, "loss": 1.0, "forget_nll": i % 7} for i in range(1, 5 * MAX_POINTS)]
    svg = charts(lines)["losses"].svg
    assert len(svg) < 100 * MAX_POINTS
    assert f"at step {5 * MAX_POINTS - 1}" in svg


def test_an_svg_has_a_name_and_ids_of_its_own_and_refers_to_nothing_outside(charts):
    found = charts([*STEPS, *PROBES], kept_step=4, max_retain_kl=0.06)
    ids = []
    for name, chart in found.items():
        svg = str(chart.svg)
        assert f'role="img" aria-labelledby="{name}-title {name}-description"' in svg
        assert f'<title id="{name}-title">{chart.title}</title>' in svg
        assert not re.search(r"https?:|url\(|xlink|<style|<metadata|#[0-9a-f]{6}", svg)
        own = re.findall(r' id="([^"]*)"', svg)
        references = re.findall(r'href="#([^"]*)"', svg)
        assert set(references) <= set(own)
        ids += own
        HTMLParser().feed(svg)
    assert len(ids) == len(set(ids))


def test_text_in_an_svg_is_escaped():
    figure = Figure()
    figure.subplots().set_xlabel("<b>&")
    svg = svg_of(figure, "x", "<script>", '"&')
    assert "<script>" not in svg and "<b>" not in svg and "&lt;script&gt;" in svg


def test_figures_are_the_same_when_drawn_again(charts):
    assert charts(STEPS)["losses"].svg == charts(STEPS)["losses"].svg


def test_drawing_leaves_a_caller_s_own_plots_alone(charts):
    """A notebook's backend stays, and no figure is left open (pyplot warns from the 20th on)."""
    import matplotlib
    import matplotlib.pyplot as plt

    try:
        plt.switch_backend("svg")
        plt.close("all")  # another test's
        charts([*STEPS, *PROBES], kept_step=4, max_retain_kl=0.06)
        assert plt.get_fignums() == []
        assert matplotlib.get_backend().lower() == "svg"
    finally:
        plt.switch_backend("agg")
