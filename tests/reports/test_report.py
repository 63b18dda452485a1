"""`report.md`, and what the reports may import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from unteach.errors import UserError
from unteach.files.atomic import read_json_lines
from unteach.reports.report import examples, probe_table, write_report

RATE = {"value": 1.0, "n": 17, "ci_low": 0.82, "ci_high": 1.0, "higher_is_better": False}
GONE = {"value": 0.0, "n": 17, "ci_low": 0.0, "ci_high": 0.18, "higher_is_better": False}
ALIKE = {"value": 0.93, "n": 20, "ci_low": 0.9, "ci_high": 0.95, "higher_is_better": True}
EVALUATION = {
    "schema_version": 1,
    "scenario": "copyright",
    "models": {
        "original": {
            "unlearned": {"leak_rate": RATE},
            "normal": {"similarity": ALIKE | {"value": 1.0}},
        },
        "unlearned": {"unlearned": {"leak_rate": GONE}, "normal": {"similarity": ALIKE}},
    },
}
RUN = {
    "scenario": "copyright",
    "model": "some/model",
    "method": "unlikelihood_mismatch",
    "steps": 28,
    "kept_step": 21,
    "stop_reason": "forget rate at most 5% in 2 probes in a row",
    "forget_rows": 23,
    "retain_rows": 60,
    "leak_threshold_bleu": 12.34,
    "seconds": 654.3,
    "tokens_per_second": 210.5,
    "peak_memory_bytes": 3 * 2**30,
    "seed": 7,
    "max_retain_kl": 0.06,
    "original_model_hash": "a" * 64,
    "unlearned_model_hash": "b" * 64,
}


def generations(show_text):
    records = []
    for model in ("original", "unlearned"):
        for name, number in (("unlearned", 0), ("normal", 0), ("normal", 1), ("normal", 2)):
            record = {"model": model, "set": name, "key": f"key{number}", "metrics": {}}
            if show_text or name == "normal":
                record |= {
                    "prompt": f"prompt of {name} {number}",
                    "expected": "",
                    "output": f"{name} {number}\nsaid by {model}",
                }
            records.append(record)
    return records


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    steps = [{"step": i, "loss": 1.0, "forget_nll": 0.1, "retain_kl": 0.01} for i in (1, 2)]
    probes = [
        {"step": i, "probe": {"train_rate": 1.0, "validation_rate": 1.0, "utility": 0.9}}
        for i in (0, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text(lines([*steps, *probes]), encoding="utf-8")
    (tmp_path / "generations.jsonl").write_text(
        lines(generations(show_text=False)), encoding="utf-8"
    )
    return tmp_path


def test_the_report_holds_the_facts_the_table_and_the_figures(folder):
    path = write_report(folder)
    text = path.read_text(encoding="utf-8")
    assert path == folder / "report.md"
    for fact in (
        "some/model",
        "unlikelihood_mismatch",
        "| steps | 28 |",
        "| kept step | 21 |",
        RUN["stop_reason"],
        "| forget rows | 23 |",
        "12.34",
        "654.3",
        "210.5",
        "3.00 GiB",
        "a" * 64,
    ):
        assert fact in text, fact
    assert "100% [82%, 100%] -> 0% [0%, 18%]" in text
    assert "Leak rate: forget 100% -> 0%" in text
    for name in ("behaviour", "losses", "retain_kl"):
        assert f"(figures/{name}.png)" in text and (folder / "figures" / f"{name}.png").exists()


def test_the_report_shows_forget_texts_only_where_the_generations_do(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    assert "prompt of unlearned" not in text and "unlearned 0 said by" not in text
    assert "prompt of normal 0" in text and "> normal 0 said by unlearned" in text
    (folder / "generations.jsonl").write_text(lines(generations(show_text=True)), encoding="utf-8")
    assert "> unlearned 0 said by original" in write_report(folder).read_text(encoding="utf-8")


def test_so_many_examples_of_each_set_are_shown():
    shown = examples(generations(show_text=False), per_set=2)
    assert [row[:2] for row in shown] == [
        ["normal", "prompt of normal 0"],
        ["normal", "prompt of normal 1"],
    ]
    assert shown[0][2:] == ["normal 0 said by original", "normal 0 said by unlearned"]


def test_a_report_without_probes_has_no_behaviour_figure(folder):
    (folder / "metrics.jsonl").write_text(
        lines([{"step": 1, "loss": 1.0, "forget_nll": 0.1}]), encoding="utf-8"
    )
    text = write_report(folder).read_text(encoding="utf-8")
    assert "behaviour.png" not in text and "losses.png" in text


@pytest.mark.parametrize("name", ["eval.json", "run.json"])
def test_a_folder_that_is_no_finished_run_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}"):
        write_report(folder)


def test_a_report_is_made_again_over_an_old_one(folder):
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_reports_import_no_torch():
    code = (
        "import sys, unteach.reports.report;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def probed(tmp_path):
    rows = [
        {"model": "original", "set": "unlearned", "key": key, "prompt": f"Who is\n{key}?"}
        for key in ("k1", "k2", "k3")
    ]
    rows.append({"model": "original", "set": "normal", "key": "n1", "prompt": "What?"})
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "work").mkdir()
    for step, text in ((0, "A | B"), (200, "A"), (1000, " ")):
        (tmp_path / "work" / f"probe-outputs-{step}.json").write_text(
            json.dumps({"k1": text, "k3": f"{step}"})
        )
    return tmp_path


def probes(folder):
    return probe_table(folder, read_json_lines(folder / "generations.jsonl"))


def test_answers_at_each_probe_stand_in_order(probed):
    lines = probes(probed).markdown().splitlines()
    assert lines[0] == "| prompt | original | step 200 | step 1000 |"
    assert lines[2] == r"| Who is k1? | A \| B | A | (empty) |"
    assert len(lines) == 4, "k2 was not probed"


def test_hidden_texts_are_not_in_the_table_of_probes(probed):
    (probed / "generations.jsonl").write_text(
        json.dumps({"model": "original", "set": "unlearned", "key": "k1"}) + "\n"
    )
    assert probes(probed) is None


def test_without_stored_answers_there_is_no_table_of_probes(probed):
    for path in (probed / "work").iterdir():
        path.unlink()
    assert probes(probed) is None
