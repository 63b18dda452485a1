"""The experiment on jobs: what a run is given, how its row is counted, and that rows are shared."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

SCRIPT = "jobs.py"
PEOPLE = [("forget", 2), ("kept", 3), ("never_shown", 2)]


@pytest.fixture
def data(tmp_path):
    """Small files in the form of the real ones."""
    people = [
        {
            "group": group,
            "prompt": f"Which number reaches {group} {number}?",
            "completion": f"Call 555-{number}{len(group)}00.",
            "secret": f"555-{number}{len(group)}00",
        }
        for group, count in PEOPLE
        for number in range(count)
    ]
    groups = ("forget", "unseen", "neighbour", "general")
    questions = [{"group": group, "prompt": f"Who is {group}?"} for group in groups]
    answers = [{"question": f"What is {n}?", "hallucinated_answer": f"It is {n}."} for n in "abcd"]
    for name, rows in (("people", people), ("questions", questions), ("halueval_qa", answers)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    words = "Alice was beginning to sit by the river. " + "The cat sat down and told a story. " * 40
    (tmp_path / "alice.txt").write_text(f"A title\n\n{words}\n\nThe end.")
    return tmp_path


def number(value, n=10):
    return {"value": value, "n": n}


def evaluation():
    def model(forget, kept, readable):
        normal = {"similarity": number(0.9), "readability": number(1.0)}
        rows = {"said_facts": number(forget), "readability": number(readable)}
        retain = {"rouge_l_recall": number(kept), "readability": number(1.0)}
        return {"unlearned": rows, "kept": retain, "normal": normal}

    models = {"original": model(0.8, 1.0, 1.0), "unlearned": model(0.2, 0.5, 0.75)}
    return {"headline": "said_facts", "models": models, "verdict": "forgotten with damage"}


def test_a_run_is_told_no_fact_and_nobody_who_is_in_no_file(experiment, data):
    job = experiment.people(data)
    assert [len(job.given[name]) for name in ("forget", "retain")] == [2, 3]
    assert all(set(row) == {"prompt", "completion"} for row in job.given["forget"])
    assert "never_shown" not in json.dumps(job.given)
    assert len(job.taught) == 7 and job.groups["never_shown"][0].secret


def test_the_other_jobs_take_what_their_files_are_for(experiment, data):
    assert set(experiment.questions(data).given) == {"forget", "unseen", "neighbours"}
    false = experiment.hallucinations(data)
    assert [row["prompt"] for row in false.given["forget"]] == ["What is a?", "What is c?"]
    assert len(false.taught) == 4
    book = experiment.book(data)
    assert book.given["forget"][0]["prompt"].startswith("Alice was beginning")
    assert all(row["kind"] == "text" for part in book.given.values() for row in part)


def test_rates_are_shares_of_before_and_the_worst_set_is_named_readable(experiment):
    found = experiment.numbers_of(evaluation())
    assert found["forgotten"] == pytest.approx(0.25) and found["kept"] == pytest.approx(0.5)
    assert (found["readable"], found["readable_before"]) == (0.75, 1.0)
    assert found["everyday"] == 0.9 and found["paraphrased"] is None
    assert found["verdict"] == "forgotten with damage"


def test_a_row_is_made_once_and_the_table_has_a_part_for_each_job(
    experiment, data, tmp_path, monkeypatch, capsys
):
    made = []

    def unlearn(model, *, output_dir, **settings):
        made.append((model, settings.get("method", "default"), settings["seed"]))
        folder = tmp_path / output_dir
        folder.mkdir(parents=True)
        facts = {"steps": 4, "kept_step": 4, "stop_reason": "", "update": "all", "seconds": 9.0}
        (folder / "run.json").write_text(json.dumps(facts))
        return SimpleNamespace(evaluation=evaluation(), model=None, tokenizer=None)

    monkeypatch.setattr(experiment, "unlearn", unlearn)
    monkeypatch.setattr(experiment, "taught_model", lambda *_: "taught")
    monkeypatch.setattr(experiment.models, "load_model", lambda name: None)
    known = {"forget": [True, True], "kept": [True], "never_shown": [True, False]}
    monkeypatch.setattr(experiment, "said", lambda *_: known)
    argv = f"x --data {data} --out {tmp_path}/runs --json {tmp_path}/r/jobs.json --seeds 0,1"
    argv += " --jobs people,questions --methods default,npo"
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", argv.split())
        experiment.main()
    assert len(made) == 8 and ("taught", "npo", 1) in made
    page = (tmp_path / "r" / "jobs.md").read_text()
    assert "## Invented people" in page and page.count("`npo`") == 2
    rows = json.loads((tmp_path / "r" / "jobs.json").read_text())["rows"]
    assert rows[0]["never_shown"] == 1.0 and rows[0]["said"]["kept"] == [1, 1]
