"""The model card: metadata that the hub reads, the facts, and no text of the forget set."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from unteach.reports.report import write_card
from unteach.reports.run_files import base_model, last_name, without_paths


def result(value, n=17, better=False):
    return {"value": value, "n": n, "ci_low": value, "ci_high": value, "higher_is_better": better}


def write(folder, model="some-lab/some-model"):
    before = {
        "unlearned": {"leak_rate": result(1.0), "fluency": result(4.0)},
        "normal": {"similarity": result(1.0, 20, True)},
    }
    after = {
        "unlearned": {"leak_rate": result(0.0), "fluency": result(None, 0)},
        "normal": {"similarity": result(0.9, 20, True)},
    }
    evaluation = {
        "schema_version": 1,
        "scenario": "copyright",
        "models": {"original": before, "unlearned": after},
    }
    evaluation |= {"scorers": {"similarity": {"name": "all-minilm-l6-v2"}}, "fluency_model": model}
    run = {
        "model": model,
        "method": "ga_mismatch",
        "steps": 9,
        "kept_step": 8,
        "stop_reason": "target held",
        "forget_rows": 3,
    }
    run |= {
        "retain_rows": 5,
        "base_model_hash": "b" * 64,
        "original_model_hash": "b" * 64,
        "unlearned_model_hash": "c" * 64,
    }
    record = {
        "model": "unlearned",
        "set": "unlearned",
        "key": "k",
        "prompt": "who?",
        "output": "a secret",
        "metrics": {},
    }
    (folder / "eval.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "generations.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")


def test_the_hub_can_read_the_card(tmp_path):
    write(tmp_path)
    path = write_card(tmp_path)
    assert path == tmp_path / "README.md"
    data = ModelCard.load(path).data
    assert data.library_name == "transformers"
    assert data.base_model == "some-lab/some-model"
    assert {"unlearning", "unteach"} <= set(data.tags)
    assert data.metrics == ["leak_rate", "similarity"]
    assert {(item.metric_type, item.metric_value) for item in data.eval_results} == {
        ("leak_rate", 0.0),
        ("similarity", 0.9),
    }


def test_the_card_states_what_was_done_and_what_it_does_not_show(tmp_path):
    write(tmp_path)
    text = write_card(tmp_path).read_text(encoding="utf-8")
    for part in (
        "100% → 0%",
        "4.00",
        "ga_mismatch",
        "target held",
        "similarity to the original's answers: all-minilm-l6-v2",
        "c" * 64,
        "legal",
        "from_pretrained",
    ):
        assert part in text


def test_no_text_of_a_row_stands_in_the_card(tmp_path):
    write(tmp_path)
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert "secret" not in text and "who?" not in text


def test_a_local_model_is_no_base_model_and_shows_its_last_name_alone(tmp_path):
    write(tmp_path, model="/home/someone/my models/mine")
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert ModelCard(text).data.base_model is None
    assert (
        "/home" not in text
        and "someone" not in text
        and "my models" not in text
        and "**mine**" in text
    )


@pytest.mark.parametrize(("part", "library"), [("model", "transformers"), ("adapter", "peft")])
def test_the_card_also_stands_beside_the_weights(tmp_path, part, library):
    write(tmp_path)
    (tmp_path / part).mkdir()
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert (tmp_path / part / "README.md").read_text(encoding="utf-8") == text
    assert ModelCard(text).data.library_name == library


def test_an_evaluation_alone_has_a_card_too(tmp_path):
    write(tmp_path)
    (tmp_path / "run.json").unlink()
    assert "## Original and unlearned model" in write_card(tmp_path).read_text(encoding="utf-8")


def test_a_base_model_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert base_model("smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_model("gpt2") == "gpt2"
    assert [
        base_model(name)
        for name in ("here", "./x", "runs/a/model", "/a/b", "~/x", "C:\\x\\y", None)
    ] == [None] * 7


def test_paths_are_cut_in_names_and_in_sentences():
    assert last_name("/a/b c/d") == "d"
    assert last_name("lab/model") == "lab/model"
    assert without_paths(
        {"Loading /a/b": ["see ~/x/y.jsonl, or ../z", 3, "tokens / s", "8/12"]}
    ) == {"Loading b": ["see y.jsonl, or z", 3, "tokens / s", "8/12"]}
    assert without_paths("Loading /my models/x", ["/my models/x"]) == "Loading x"
