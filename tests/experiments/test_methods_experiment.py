"""The experiment on methods: pooling, ranks, its table, and that nothing runs twice."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from unteach.methods import METHODS
from unteach.scenarios import embedded_scenario

SCRIPT = "methods.py"


def rate(value, n):
    return {"value": value, "n": n, "ci_low": 0.0, "ci_high": 1.0, "higher_is_better": False}


def result(method, seed=0, *, unlearned=0.0, kept=1.0, fluency=4.0, relearning=8):
    return {
        "method": method,
        "seed": seed,
        "unlearned": rate(unlearned, 10),
        "unseen": rate(0.0, 5),
        "kept": kept,
        "kept_unseen": kept,
        "normal": 0.9,
        "fluency": fluency,
        "fluency_before": 4.0,
        "not_meaningful": 0.0,
        "relearning": relearning,
        "relearning_curve": [],
        "four_bits": rate(unlearned, 10),
        "seconds": 100.0,
        "learning_rate": 1e-4,
        "bf16": False,
    }


def test_the_methods_exist_and_are_named_once(experiment):
    names = [*experiment.OURS, *experiment.PUBLISHED]
    assert set(names) <= set(METHODS) and len(names) == len(set(names))


def test_counts_are_added_up_and_relearning_that_never_came_back_counts_as_the_most(experiment):
    found = experiment.pooled(
        [
            result("a", 0, unlearned=0.2, relearning=4),
            result("a", 1, unlearned=0.4, relearning=None),
        ]
    )
    assert (
        found["unlearned"] == pytest.approx(0.3)
        and found["unlearned_interval"][0] < 0.3 < found["unlearned_interval"][1]
    )
    assert found["relearning"] == (4 + 30) / 2 and found["never_back"] == 1 and found["seeds"] == 2


def test_ranks_share_ties_and_a_lower_fluency_is_no_gain(experiment):
    table = {
        name: {**experiment.pooled([row]), "fluency_before": 4.0}
        for name, row in {
            "a": result("a", fluency=3.0),
            "b": result("b", fluency=3.9),
            "c": result("c", unlearned=0.5, kept=0.5, fluency=6.0),
        }.items()
    }
    sums = experiment.ranks(table)
    assert sums["a"] == sums["b"] < sums["c"]
    assert sum(sums.values()) == 8 * (1 + 2 + 3), "eight columns count"


def test_what_stands_there_is_not_run_again_and_the_table_has_every_column(
    experiment, monkeypatch, tmp_path, capsys
):
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    (results / "npo-0.json").write_text(json.dumps(result("npo")))
    ran = []

    def run(self, method, learning_rate):
        ran.append((self.seed, method, learning_rate))
        return {
            key: value
            for key, value in result(method, self.seed, relearning=None).items()
            if key not in ("method", "seed")
        }

    monkeypatch.setattr(experiment.Seed, "run", run)
    argv = [
        "methods.py",
        "--seeds",
        "0,1",
        "--methods",
        "npo,ga",
        "--out",
        str(tmp_path / "out"),
        "--json",
        str(tmp_path / "m.json"),
    ]
    monkeypatch.setattr(sys, "argv", argv)
    experiment.main()
    assert ran == [
        (0, "ga", None),
        (1, "npo", 1e-4),
        (1, "ga", 1e-4),
    ], "the first seed finds the learning rate"
    text = (tmp_path / "m.md").read_text(encoding="utf-8")
    assert (
        all(
            title in text
            for key, title, _ in experiment.COLUMNS
            if key not in ("reward", "diversity")
        )
        and "reward" not in text
        and "| never |" in text
        and "`ga`" in text
    )
    assert len(json.loads((tmp_path / "m.json").read_text())["rows"]) == 4
    capsys.readouterr()


@pytest.mark.parametrize("scenario", ["copyright", "harmfulness", "hallucination"])
def test_ours_have_the_weights_of_the_scenario_s_demo_and_the_others_those_of_their_papers(
    experiment, scenario
):
    demo = experiment.all_weights(scenario, False)
    adapter = scenario == "harmfulness"  # its own demo trains one
    assert embedded_scenario(scenario).demo().items() <= demo.items() or adapter
    ours = experiment.settings_of(scenario, "unlikelihood_mismatch", False)
    assert (ours["retain_weight"], ours["mismatch_weight"]) == (
        demo["retain_weight"],
        demo["mismatch_weight"],
    )
    assert "max_retain_kl" not in ours and ours["max_steps"] == demo["max_steps"]
    assert "mismatch_weight" not in experiment.settings_of(scenario, "unlikelihood", False)
    published = experiment.settings_of(scenario, "npo", False)
    assert published["max_retain_kl"] is None and not [
        name for name in published if name.endswith("_weight")
    ]


@pytest.mark.parametrize("scenario", ["copyright", "harmfulness", "hallucination"])
@pytest.mark.parametrize("method", ["log_odds_mismatch", "npo"])
def test_every_method_trains_the_weights_of_the_upper_layers(
    experiment, monkeypatch, tmp_path, scenario, method
):
    class Stop(Exception):
        pass

    def execute(resolved, scenario, display):
        found.append(resolved)
        raise Stop

    found: list = []
    monkeypatch.setattr(experiment, "execute", execute)
    names = argparse.Namespace(
        scenario=scenario,
        short=False,
        bf16=True,
        model="m",
        out=tmp_path,
        search_minutes=0,
        no_attacks=True,
    )
    with pytest.raises(Stop):
        experiment.Seed(names, 0).run(method, None)
    wanted = experiment.all_weights(scenario, False)
    run, chosen = found[0].run, found[0].chosen
    assert run.lora is False and run.frozen_layers == wanted["frozen_layers"]
    assert chosen["learning_rate"] == wanted["learning_rate"]
    assert ("retain_weight" in chosen) == (method == "log_odds_mismatch")


def test_the_front_holds_what_no_other_method_forgets_and_keeps_more_than(experiment):
    points = {
        "best": (0.0, 1.0),
        "worse": (0.1, 0.9),
        "keeps": (0.4, 1.2),
        "same": (0.0, 1.0),
        "forgets less": (0.2, 1.0),
    }
    table = {
        name: experiment.pooled([result(name, unlearned=2 * said, kept=kept)])
        for name, (said, kept) in points.items()
    }
    assert experiment.on_the_front(table) == {"best", "same", "keeps"}


def test_a_scenario_without_another_story_has_its_reward_and_no_column_for_what_is_not_there(
    experiment,
):
    rows = []
    for method in ("ga", "npo"):
        row = {
            key: value
            for key, value in result(method).items()
            if key not in ("kept", "kept_unseen", "relearning_curve", "four_bits")
        }
        rows.append(row | {"reward": 3.21})
    text = experiment.markdown(rows, "harmfulness")
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    assert (
        "reward" in header
        and "3.21" in text
        and not any(word in header for word in ("kept", "4 bits", "relearning"))
    )


def test_ranks_add_up_over_tables_on_the_seeds_that_all_have(
    experiment, tmp_path, monkeypatch, capsys
):
    tables = {
        "one": [
            result("a", 0, unlearned=0.5),
            result("a", 1),
            result("b", 1, kept=0.5),
            result("c", 1),
        ],
        "two": [result("a", 0, kept=0.5), result("b", 0)],
    }
    for name, rows in tables.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    paths = ",".join(str(tmp_path / f"{name}.json") for name in tables)
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--over", paths, "--methods", "b,a"])
    experiment.main()
    said = capsys.readouterr().out
    assert "one (seeds 1)" in said and "two (seeds 0)" in said
    columns = (
        len(experiment.columns_of({"a": experiment.pooled([result("a")])})) - 1
    )  # without the seconds
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:5]]
        for line in said.splitlines()
        if "`" in line
    }
    assert cells["`a`"] == [
        f"{1.5 * columns - 1:.1f}*",
        f"{1.5 * columns + 1:.1f}",
        f"{3 * columns:.1f}",
    ]
    with pytest.raises(SystemExit, match="no seed in common"):
        experiment.ranks_over({"t": [result("a", 0), result("b", 1)]}, ["a", "b"])
