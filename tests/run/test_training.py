"""What a run decides about its training once it knows the facts of its rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tiny_models import tiny_model
from unteach import models
from unteach.config.resolve import resolve, suitable_learning_rate
from unteach.data.rows import Row
from unteach.progress import Display
from unteach.run.training import with_update_for

WHOLE = [Row(f"Who sang {i}?", "Ada.", whole=True) for i in range(3)]
NAMED = [Row(f"Who is {i}?", "Bo.", secret=("Bo",)) for i in range(3)]


@pytest.fixture(scope="module")
def source():
    return SimpleNamespace(model=tiny_model(), display=Display())


def settings(source, **options):
    found = resolve({"model": "m", "method": "counterfactual", **options})
    return found.with_width(models.width(source.model))


def test_where_most_rows_are_forgotten_whole_all_weights_are_trained(source, capsys):
    first = settings(source)
    found = with_update_for([*WHOLE, *NAMED], first, source)
    rate = suitable_learning_rate(models.width(source.model), "divert", lora=False)
    assert (found.training["update"], found.training["learning_rate"]) == ("all", rate)
    assert found.sources["update"] == "rows"
    assert "all weights are trained" in " ".join(capsys.readouterr().out.split())
    assert with_update_for([*WHOLE[:2], *NAMED], first, source) is first


@pytest.mark.parametrize(
    "options", [{"update": "directed"}, {"learning_rate": 1e-4}, {"lora": True}, {"method": "npo"}]
)
def test_what_the_user_set_stays(options, source):
    first = settings(source, **options)
    assert with_update_for(WHOLE, first, source) is first


def test_without_the_memory_for_it_the_update_stays_directed(source, monkeypatch, capsys):
    monkeypatch.setattr("unteach.run.training.memory_bytes", lambda: 2**10)
    first = settings(source)
    assert with_update_for(WHOLE, first, source) is first
    assert "0.0 GiB are there" in " ".join(capsys.readouterr().out.split())
