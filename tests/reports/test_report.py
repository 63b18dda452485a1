"""`report.md`, and what the reports may import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from unteach.errors import UserError
from unteach.reports.report import examples, write_report

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
        "28 (21)",
        RUN["stop_reason"],
        "23, 60",
        "12.3",
        "654; 210.5",
        "3.0 GiB",
        "aaaaaaaaaaaa",
    ):
        assert fact in text, fact
    assert "100% [82%, 100%] -> 0% [0%, 18%]" in text
    assert "Leak rate: unlearned 100% -> 0%" in text
    for name in ("behaviour", "losses"):
        assert f"(figures/{name}.png)" in text and (folder / "figures" / f"{name}.png").exists()


def test_the_report_shows_forget_texts_only_where_the_generations_do(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    assert "prompt of unlearned" not in text and "unlearned 0 said by" not in text
    assert "prompt of normal 0" in text and "> normal 0 said by unlearned" in text
    (folder / "generations.jsonl").write_text(lines(generations(show_text=True)), encoding="utf-8")
    assert "> unlearned 0 said by original" in write_report(folder).read_text(encoding="utf-8")


def test_so_many_examples_of_each_set_are_shown_before_and_after(folder):
    shown = examples(folder, per_set=2)
    assert shown.count("before:") == shown.count("after:") == 2
    assert shown.index("said by original") < shown.index("said by unlearned")
    assert "normal 2" not in shown


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
        "import sys, unteach.reports.figures, unteach.reports.report, unteach.reports.tables;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
