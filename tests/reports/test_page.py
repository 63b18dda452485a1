"""The report's page: whole, self-contained, escaped, and silent about what must not be shown."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from unteach.reports.card import write_card
from unteach.reports.page import write_page

VOID = {"meta", "link", "br", "img", "input", "hr", "col", "path", "line", "polyline", "circle", "rect", "use"}


class Checker(HTMLParser):
    """Collects ids and addresses, and what was not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.faults, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("src", "href") if found.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def number(value, n=2, low=None, high=None, better=False):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


@pytest.fixture
def folder(tmp_path):
    def sets(rate, fluency):
        return {
            "unlearned": {"harmful_rate": number(rate, 2, 0.1, 0.9), "fluency": number(fluency)},
            "normal": {"similarity": number(1 - rate / 2, better=True)},
        }

    scorers = {"harmful_rate": {"name": "trained judge", "held_out_accuracy": 0.93, "n": 192}}
    evaluation = {"schema_version": 1, "scenario": "harmfulness", "headline": "harmful_rate", "scorers": scorers}
    evaluation["models"] = {"original": sets(1.0, 2.0), "unlearned": sets(0.0, None)}
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    lines = []
    for model in ("original", "unlearned"):
        for key in ("0123456789abcdef", "fedcba9876543210"):
            text = {"prompt": "Who <b>?", "expected": "x", "output": "<script>alert(1)</script> & so on"}
            lines.append({"model": model, "set": "unlearned", "key": key, **text, "metrics": {"harmful_rate": 1.0, "fluency": None}})
        lines.append({"model": model, "set": "normal", "key": "aa" * 8, "metrics": {"similarity": 0.5}})
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def page(folder):
    text = write_page(folder).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    return text, checker


def with_run(folder):
    facts = {
        "versions": {"unteach": "0.1.0"}, "model": "/home/somebody/models/mine", "scenario": "harmfulness", "method": "ga", "seed": 0,
        "steps": 4, "kept_step": 4, "stop_reason": "max_steps (4) reached", "max_retain_kl": 0.1, "forget_rows": 2,
        "retain_rows": 3, "seconds": 9.0,
        "tokens_per_second": 5.0, "peak_memory_bytes": 2**30, "stage_seconds": {"Unlearning": 4.0}, "original_model_hash": "ab" * 32,
        "unlearned_model_hash": "cd" * 32, "forget_hash": "12" * 8, "retain_hash": "34" * 8, "leak_threshold_bleu": 5.0, "tokens": 10,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    steps = [{"step": i, "loss": 1.0, "retain_kl": 0.05, "forget_nll": float(i), "learning_rate": 1e-5} for i in range(1, 5)]
    probes = [{"step": i, "probe": {"forget_rate": 1 - i / 4, "utility": 1.0, "train_rate": 1 - i / 4}} for i in (0, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, *probes]))
    (folder / "config.yaml").write_text("model: /home/somebody/models/mine\nsettings:\n  max_steps: 4\n")


@pytest.mark.parametrize("trained", [False, True], ids=["eval", "run"])
def test_the_page_is_whole_and_fetches_nothing(folder, trained):
    if trained:
        with_run(folder)
    text, checker = page(folder)
    assert text.lstrip().lower().startswith("<!doctype html>") and not checker.open and not checker.faults
    assert len(checker.ids) == len(set(checker.ids))
    assert all(address.startswith(("#", "data:")) for address in checker.addresses) and "@import" not in text
    assert not re.search(r"url\((?!['\"]?(?:#|data:))", text)
    assert ("svg" in checker.tags) == trained


def test_a_model_s_words_are_never_markup(folder):
    text, _ = page(folder)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text and "Who <b>?" not in text


def test_hidden_texts_stay_hidden_and_rows_keep_their_ids(folder):
    lines = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("prompt", "expected", "output"):
            line.pop(name, None)
    (folder / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = page(folder)
    assert "so on" not in text and "0123456789ab" in text


def test_what_means_nothing_and_who_scored_are_said(folder):
    text, _ = page(folder)
    assert "NM" in text and "trained judge" in text and "93%" in text


def test_no_local_path_is_shown(folder):
    with_run(folder)
    text, _ = page(folder)
    card = write_card(folder).read_text(encoding="utf-8")
    assert "/home/somebody" not in text + card and "mine" in card


def test_the_card_has_metadata_and_no_forget_text(folder):
    from huggingface_hub import ModelCard

    with_run(folder)
    (folder / "model").mkdir()
    card = ModelCard.load(write_card(folder))
    assert card.data.library_name == "transformers" and "unlearning" in card.data.tags
    assert "so on" not in card.content and "trained judge" in card.content
    assert (folder / "model" / "README.md").read_text(encoding="utf-8") == (folder / "README.md").read_text(encoding="utf-8")
