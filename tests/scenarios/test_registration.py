"""A scenario that is added from outside the package is one file and its texts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.cli import main
from unteach.data.rows import Row, split_rows
from unteach.errors import UserError
from unteach.run.folder import RunFolder
from unteach.scenarios import SCENARIOS, EmbeddedScenario, build_scenario
from unteach.scenarios.scenario import Scenario

TEXT = [(f"Who keeps lock {i}?", f"The lock keeper of lane {i}.") for i in range(14)]


def build(*, short: bool = False) -> Scenario:
    rows = [Row(prompt, completion) for prompt, completion in TEXT]
    split = split_rows(rows)
    return Scenario(
        name="locks",
        forget=split["train"],
        validation=split["validation"],
        retain=[Row(f"What is thing {i}?", f"A sack of flour, the {i}th.") for i in range(8)],
        sets={"unlearned": split["train"], "unseen": split["test"]},
        teach=rows,
        teach_settings={"max_steps": 2, "per_device_train_batch_size": 4},
    )


def demo(*, short: bool = False) -> dict[str, object]:
    return {"max_steps": 2, "probe_steps": 2, "min_utility": 0.0, "similarity_model": None}


def test_a_registered_scenario_is_a_demo_and_its_run_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setitem(SCENARIOS, "locks", EmbeddedScenario(build, demo))
    tiny_model().save_pretrained(tmp_path / "m")
    byte_level_bpe(chat=True).save_pretrained(tmp_path / "m")
    out = tmp_path / "out"
    words = ["--model", str(tmp_path / "m"), "--out", str(out), "bf16=false", "hold=9"]
    assert main(["demo", "--scenario", "locks", *words]) == 0
    record = json.loads((out / "run.json").read_text())
    assert (record["scenario"], record["steps"]) == ("locks", 2)
    assert RunFolder(out).scenario().forget == build().forget


def test_an_unknown_scenario_is_named_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'harmfulness'"):
        build_scenario("harmfullness")


def test_the_table_of_scenarios_needs_no_torch():
    code = "import unteach.scenarios, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
