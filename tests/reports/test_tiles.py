"""The page's tiles: figures by role, answers to read, and no text that is hidden."""

from __future__ import annotations

from unteach.evaluation.eval_json import as_eval_json
from unteach.evaluation.results import MetricResult
from unteach.reports.page import EXAMPLES, LONGEST, tiles
from unteach.reports.results import Results
from unteach.reports.run_files import RunFiles


def value(number: float, n: int = 30) -> MetricResult:
    return MetricResult(number, n, None, None, None)


def files_of(hidden: tuple[str, ...] = (), broken: int = 0) -> RunFiles:
    models: dict = {
        model: {
            "unlearned": {"said_facts": value(facts), "readability": value(1 - 0.1 * broken)},
            "neighbours": {"said_facts": value(0.8), "readability": value(1.0)},
            "normal": {"similarity": value(near), "readability": value(1.0)},
        }
        for model, facts, near in (("original", 0.9, 1.0), ("unlearned", 0.0, 0.95))
    }
    records = []
    for model in models:
        for name in models[model]:
            for place in range(4):
                record = {"model": model, "set": name, "key": f"{place}", "metrics": {}}
                bad = model == "unlearned" and name == "unlearned" and place < broken
                record["metrics"]["readability"] = 0.0 if bad else 1.0
                if name not in hidden:
                    text = f"{model} {name} {place} " + "long " * 60
                    record |= {"prompt": f"prompt {name} {place}", "output": text}
                records.append(record)
    results = Results(as_eval_json("run", models, headline="said_facts"))
    return RunFiles("x", results, {}, {}, {}, [], [], records)


def test_each_role_has_a_tile_and_readability_one_of_its_own():
    found = tiles(files_of())
    assert [tile["title"] for tile in found] == [
        "Forgotten?",
        "Kept: neighbours and retain rows",
        "Readable?",
        "Everyday answers",
    ]
    forgotten, kept, readable, everyday = found
    (line,) = forgotten["lines"]
    assert (line["before"], line["after"], line["metric"]) == ("90%", "0%", "said facts, n = 30")
    assert [line["set"] for line in kept["lines"]] == ["neighbours"]
    assert len(readable["lines"]) == 3 and readable["examples"] == []
    assert everyday["lines"][0]["before"] == ""  # it compares with the original itself
    for tile in (forgotten, kept, everyday):
        assert len(tile["examples"]) == EXAMPLES
    first = forgotten["examples"][0]
    assert first["prompt"] == "prompt unlearned 0"
    assert first["before"].startswith("original") and first["after"].startswith("unlearned")
    assert len(first["after"]) <= LONGEST


def test_answers_that_cannot_be_read_are_shown_and_hidden_texts_are_not():
    _, _, readable, _ = tiles(files_of(broken=2))
    assert [one["prompt"] for one in readable["examples"]] == [
        "prompt unlearned 0",
        "prompt unlearned 1",
    ]
    forgotten, kept, readable, _ = tiles(files_of(hidden=("unlearned",), broken=2))
    assert forgotten["lines"] and not forgotten["examples"] and not readable["examples"]
    assert kept["examples"]
