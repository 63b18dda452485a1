"""`report.html`: well formed, fetches nothing, hides what it must, and does with what is there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from unteach.errors import UserError
from unteach.reports.page import ROW_LIMIT, page_text, typeset
from unteach.reports.report import report_content
from unteach.reports.run_files import read_files

VOID = {"meta", "link", "br", "hr", "img", "input"}


def result(value, n=17, low=None, high=None, better=False):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


BEFORE = {
    "unlearned": {"leak_rate": result(1.0, 17, 0.82, 1.0), "fluency": result(4.1, 17, 3.9, 4.3)},
    "normal": {
        "similarity": result(1.0, 20, 1.0, 1.0, True),
        "odd_metric": result(3.0, 20, 2.9, 3.1, True),
    },
}
AFTER = {
    "unlearned": {"leak_rate": result(0.0, 17, 0.0, 0.18), "fluency": result(None, 0)},
    "normal": {
        "similarity": result(0.93, 20, 0.9, 0.95, True),
        "odd_metric": result(2.0, 20, 1.9, 2.1, True),
    },
}
RUN = {
    "versions": {"unteach": "0.1.0"},
    "model": "/home/someone/models/mine",
    "method": "unlikelihood_mismatch",
    "steps": 4,
    "kept_step": 3,
    "stop_reason": "the budget was spent",
    "max_retain_kl": 0.1,
    "original_model_hash": "a" * 64,
    "stage_seconds": {"Loading /home/someone/models/mine": 1.0, "Unlearning": 20.0},
    "seconds": 30.0,
    "tokens": 1234.0,
    "tokens_per_second": 61.7,
    "peak_memory_bytes": 2**31,
}


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def records(models=("original", "unlearned"), rows=2, text=None):
    for model in models:
        for name in ("unlearned", "normal"):
            for place in range(rows):
                record = {
                    "model": model,
                    "set": name,
                    "key": f"{place:016x}",
                    "metrics": {"leak_rate": float(place % 2), "fluency": None},
                }
                if text is not None or name == "normal":
                    record |= {
                        "prompt": f"prompt {place}",
                        "expected": "",
                        "output": text or "hello\u2028there",
                    }
                yield record


def write(folder, models=None, **kwargs):
    evaluation = {
        "schema_version": 1,
        "scenario": "copyright",
        "models": models or {"original": BEFORE, "unlearned": AFTER},
    }
    evaluation |= {
        "scorers": {"leak_rate": {"name": "BLEU over 5.1", "held_out_accuracy": 0.9, "n": 40}},
        "leak_threshold_bleu": 5.1,
    }
    (folder / "eval.json").write_text(json.dumps(evaluation), encoding="utf-8")
    kwargs.setdefault("models", evaluation["models"])
    (folder / "generations.jsonl").write_text(lines(records(**kwargs)), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(
        "model: /home/someone/models/mine\nsettings:\n  learning_rate: 0.0001\n", encoding="utf-8"
    )
    steps = [
        {"step": i, "loss": 1.0, "forget_nll": i, "retain_kl": 0.02 * i, "retain_weight": i}
        for i in (1, 2, 3, 4)
    ]
    probes = [{"step": i, "probe": {"train_rate": 1 - i / 4, "utility": 0.9}} for i in (0, 2, 4)]
    (tmp_path / "metrics.jsonl").write_text(lines([*steps, *probes]), encoding="utf-8")
    return tmp_path


class Reader(HTMLParser):
    """Collects tags in order, ids, and the references of a page; fails on tags that do not close in
    turn.
    """

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.references, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.references += [
            value for name, value in attrs if name in ("href", "src", "srcset", "action", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()


def page(folder):
    files = read_files(folder)
    return page_text(files, report_content(folder, files))


def test_the_page_is_well_formed_and_its_ids_are_unique(folder):
    reader = Reader(page(folder))
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.tags.count("h1") == 1
    assert reader.tags.count("title") == 1 + reader.tags.count("figure")


def test_the_page_fetches_nothing(folder):
    text = page(folder)
    assert all(reference.startswith(("#", "data:")) for reference in Reader(text).references)
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_policy_of_the_page_allows_its_own_script_alone(folder):
    text = page(folder)
    assert "default-src 'none'" in text
    assert re.search(r"script-src 'sha256-[\w+/]+='", text)


def test_the_verdict_the_status_and_the_curves_are_shown(folder):
    text = page(folder)
    assert "Leak rate down from 100% to 0%" in text
    assert "forget 100% → 0%" in text
    assert "Budget held" in text and "odd metric (normal)" in text
    assert text.count("kept: step 3") == 4
    assert "90% on 40 answers" in text


def test_a_budget_that_was_exceeded_is_said(folder):
    (folder / "run.json").write_text(json.dumps(RUN | {"max_retain_kl": 0.01}), encoding="utf-8")
    assert "Budget exceeded" in page(folder)


def test_a_value_that_is_not_meaningful_is_nm(folder):
    assert '<span class="number">NM</span>' in page(folder)


def test_what_a_model_says_is_escaped(folder):
    write(
        folder,
        text='<script>alert(1)</script> & "so" </dd>\u202e \x00 \ud800'.encode(
            "utf-8", "replace"
        ).decode(),
    )
    text = page(folder)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x00" not in text and "\u202e" not in text
    Reader(text)


def test_no_line_of_the_page_ends_in_spaces_even_if_an_answer_s_do(folder):
    write(folder, text="Boil the rice. \nThen eat.\t\nEnd.")
    text = page(folder)
    assert "Boil the rice.\nThen eat.\nEnd." in text and all(
        line == line.rstrip(" \t") for line in text.split("\n")
    )


def test_half_a_surrogate_pair_does_not_break_the_page(folder):
    with (folder / "generations.jsonl").open("a", encoding="utf-8") as file:
        record = {
            "model": "original",
            "set": "normal",
            "key": "f" * 16,
            "prompt": "p",
            "output": "half \ud800",
            "metrics": {},
        }
        file.write(json.dumps(record) + "\n")
    assert "half \ufffd" in page(folder)


def test_texts_of_the_forget_set_stand_there_only_if_the_run_shows_them(folder):
    assert (
        page(folder).count("<summary>Prompt and answers</summary>") == 2
    )  # those of the normal set
    write(folder, text="a secret")
    assert page(folder).count("<summary>Prompt and answers</summary>") == 4


def test_local_paths_are_cut_to_their_last_part(folder):
    text = page(folder)
    assert "/home/" not in text and "someone" not in text and str(folder) not in text
    assert "Loading mine" in text


def test_an_evaluation_alone_has_no_sections_of_a_run(tmp_path):
    write(tmp_path)
    text = page(tmp_path)
    Reader(text)
    assert (
        'id="training"' not in text
        and "Settings, data and cost" not in text
        and "Budget" not in text
    )
    assert 'id="rows"' in text


def test_without_generations_there_are_no_rows(folder):
    (folder / "generations.jsonl").unlink()
    assert 'id="rows"' not in page(folder)


def test_every_model_has_a_column(folder):
    write(folder, models={"original": BEFORE, "unlearned": AFTER, "attacked_again": AFTER})
    text = page(folder)
    assert text.count('<th scope="col" class="value">') == 3
    assert "attacked again" in text
    assert "no → no → no" in text


def test_a_large_set_is_cut_to_its_worst_rows_and_says_so(folder):
    write(folder, rows=2 * ROW_LIMIT + 10)
    text = page(folder)
    assert f"This page lists {ROW_LIMIT} of {2 * ROW_LIMIT + 10} rows" in text
    forget = text.split("Rows of forget")[1].split("</table>")[0]
    assert forget.count("yes → yes") == ROW_LIMIT and "no → no" not in forget


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no eval\.json"):
        page(tmp_path)


def test_a_file_that_is_cut_off_is_named(folder):
    (folder / "run.json").write_text('{"model": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        page(folder)


def test_a_forget_set_without_a_meaningful_rate_breaks_nothing(folder):
    write(
        folder,
        models={
            "original": BEFORE,
            "unlearned": AFTER | {"unlearned": {"leak_rate": result(None, 0)}},
        },
    )
    assert "No forget set was scored" in page(folder)


def test_arrows_and_minus_signs_are_typeset():
    assert typeset("-1.5 [-2, -1] -> NM") == "\u22121.5 [\u22122, \u22121] \u2192 NM"
    assert typeset("2026-11-28, log-odds, 1e-05") == "2026-11-28, log-odds, 1e-05"


def test_everything_in_a_table_that_scrolls_can_be_reached_by_keyboard(folder):
    text = page(folder)
    for part in re.findall(r'<section class="(?:scroll|wide)"[^>]*>', text):
        assert 'tabindex="0"' in part and "aria-label=" in part
    assert text.count('role="img"') == text.count("<figure>") > 0
    assert '<html lang="en">' in text and 'href="#content"' in text and 'id="content"' in text
