"""What a request keeps of its rows, and the rate at which they are still said."""

from __future__ import annotations

import json
import stat

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row, rows_hash
from unteach.evaluation.scorers import Scorers
from unteach.requests.request_rows import Rates, read_rows, rows_of, write_rows
from unteach.scenarios.user_rows import user_scenario

ROWS = [
    Row("Who rang?", "The ferryman.", "chat", "f, line 1"),
    Row((("user", "And then?"),), "He slept.", right="He sang."),
]


def test_rows_come_back_as_they_were_and_only_their_owner_can_read_them(tmp_path):
    write_rows(tmp_path / "work", ROWS)
    assert read_rows(tmp_path / "work") == ROWS
    assert stat.S_IMODE((tmp_path / "work").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "work" / "rows.jsonl").stat().st_mode) == 0o600


def test_rows_that_were_purged_are_read_from_their_file_if_it_holds_the_same(tmp_path):
    file = tmp_path / "forget.jsonl"
    file.write_text(json.dumps({"prompt": "Who rang?", "completion": "The ferryman."}) + "\n")
    entry = {"id": 1, "data": {"file": str(file), "completed_hash": rows_hash(ROWS[:1])}}
    assert rows_hash(rows_of(tmp_path, entry)) == rows_hash(ROWS[:1])
    file.write_text(json.dumps({"prompt": "Who rang?", "completion": "Nobody."}) + "\n")
    assert rows_of(tmp_path, entry) == []


def test_a_rate_is_measured_once(tmp_path):
    rates = Rates(
        byte_level_bpe(chat=True), Scorers(ScorerNames(similarity=None), 5.0), tmp_path / "work"
    )
    rate = rates.measure(tiny_model, "hash", ROWS)
    assert 0 <= rate <= 1
    assert rates.measure(lambda: pytest.fail("loaded again"), "hash", ROWS) == rate


def test_a_request_s_rows_are_all_forgotten_and_none_is_held_out():
    scenario = user_scenario(ROWS, None, whole=True)
    assert scenario.forget == ROWS and scenario.validation == [] and "unseen" not in scenario.sets
