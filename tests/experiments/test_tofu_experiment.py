"""The experiment on TOFU: its front, its table, and that it runs nothing twice and nothing without
data.
"""

from __future__ import annotations

import json
import sys

import pytest

from unteach.errors import UserError
from unteach.methods import METHODS

SCRIPT = "tofu.py"


def result(name, experiment, *, utility=0.4, ratios=(0.9, 0.8, 0.7), seed=0, times=1.0, **more):
    sets: dict = {}
    for part, metric, _ in experiment.COLUMNS:
        sets.setdefault(part, {})[metric] = {"value": utility}
    told = {str(place): ratio for place, ratio in enumerate(ratios)}
    row = {
        "name": name,
        "times": times,
        "seed": seed,
        "key": "k",
        "sets": sets,
        "truth_ratios": told,
    }
    ran = {
        "forget_rate": {"value": 0.0},
        "normal": 0.9,
        "fluency": None,
        "seconds": 100.0,
        "learning_rate": 1e-4,
    }
    return row | ({} if name in experiment.BEFORE else ran) | more


def test_the_methods_exist_and_the_papers_have_no_budget(experiment):
    names = {name.removesuffix(experiment.OWN) for name in experiment.METHODS}
    assert names <= {experiment.DEFAULT, *METHODS}
    assert experiment.settings_of("npo", False, True)["max_retain_kl"] is None
    assert "max_retain_kl" not in experiment.settings_of("unlikelihood_mismatch", False, True)


def test_the_front_weighs_the_distance_to_the_retrained_model_against_utility(experiment):
    rows = [
        result("full", experiment, ratios=(0.1, 0.2, 0.3)),
        result("retrained", experiment),
        result("unlikelihood_mismatch", experiment, utility=0.5),
        result("ga", experiment, utility=0.3),
        result("npo", experiment, utility=0.6, ratios=(0.1, 0.2, 0.3)),
    ]
    table = experiment.table_of(rows)
    assert (table["full"]["distance"], table["retrained"]["distance"]) == (1.0, 0.0)
    assert table["full"]["quality"] == pytest.approx(0.1), "2 / C(6, 3)"
    assert experiment.on_the_front(table) == {"unlikelihood_mismatch", "npo"}


def test_what_stands_there_is_not_made_again_and_the_table_names_what_means_nothing(
    experiment, monkeypatch, tmp_path, capsys
):
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu" / "forget10.jsonl").write_text("")
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    (results / "full-0.json").write_text(json.dumps(result("full", experiment)))
    made = []

    class Protocol:
        def __init__(self, options, seed):
            self.seed = seed

        def rows_key(self):
            return "k"

        def cell(self, name, times):
            made.append((name, times))
            if times != 1:
                return {"fault": "the loss is nan", "learning_rate": 1.0}
            return {
                key: value
                for key, value in result(name, experiment).items()
                if key not in ("name", "times", "seed", "key")
            }

    monkeypatch.setattr(experiment, "Protocol", Protocol)
    asked = ["--data", str(tmp_path / "tofu"), "--methods", "ga", "--times", "1,3"]
    argv = ["tofu.py", *asked, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "t.json")]
    monkeypatch.setattr(sys, "argv", argv)
    experiment.main()
    assert made == [("retrained", 1.0), ("ga", 1.0), ("ga", 3.0)]
    lines = {
        line.split(" |")[0]: line
        for line in (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    }
    assert "NM" in lines["| `ga`"] and "NM" not in lines["| `full`"]
    assert "NM" not in lines["| `ga x3`"] and " 0.40 " not in lines["| `ga x3`"], (
        "a run that broke down has no numbers"
    )
    assert len(json.loads((tmp_path / "t.json").read_text())["rows"]) == 4
    (results / "npo-0.json").write_text(json.dumps(result("npo", experiment, key="of other rows")))
    with pytest.raises(SystemExit, match="other rows"):
        experiment.main()
    capsys.readouterr()


def test_over_seeds_the_p_values_have_a_geometric_mean(experiment):
    rows = [result("retrained", experiment, seed=0), result("retrained", experiment, seed=1)]
    rows += [
        result("ga", experiment, seed=0),
        result("ga", experiment, seed=1, ratios=(0.1, 0.2, 0.3)),
    ]
    assert experiment.table_of(rows)["ga"]["quality"] == pytest.approx((1.0 * 0.1) ** 0.5)


def test_an_unknown_method_is_refused_before_anything_is_taught(experiment, monkeypatch, tmp_path):
    (tmp_path / "forget10.jsonl").write_text("")
    monkeypatch.setattr(
        sys,
        "argv",
        ["tofu.py", "--data", str(tmp_path), "--methods", "npoo", "--out", str(tmp_path / "out")],
    )
    with pytest.raises(UserError, match="npo"):
        experiment.main()
    assert not (tmp_path / "out").exists()


def test_without_the_files_it_says_so_and_ends(experiment, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["tofu.py", "--short", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")],
    )
    experiment.main()
    assert "does not hold TOFU's files" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
