"""The command `unteach eval`: mistakes on its command line."""

from __future__ import annotations

import json
import sys

import pytest

from unteach.cli import main
from unteach.errors import UserError
from unteach.evaluate import EvalOptions


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--benchmark", "wmdp"], "pip install 'unteach[harness]'"),
        (["--harness", "arc_easy"], "pip install 'unteach[harness]'"),
        (["--harness", " , "], "name tasks of lm-evaluation-harness"),
        (["--harness", "x", "--benchmark", "tofu"], "--harness does not go with --benchmark"),
        (["--harness", "x", "--judge", "trained"], "option --judge does not go with --benchmark"),
        (["--benchmark", "tofuu"], "unknown benchmark 'tofuu': did you mean 'tofu'?"),
        (
            ["--benchmark", "tofu", "--scenario", "copyright"],
            "option --scenario does not go with --benchmark",
        ),
        (
            ["--benchmark", "tofu", "--judge", "trained"],
            "option --judge does not go with --benchmark",
        ),
        (["--benchmark", "tofu", "--limit", "0"], "option --limit is 0"),
        (
            ["--benchmark", "tofu", "--batch-size", "0"],
            "option --batch-size is 0, it must be positive",
        ),
        (
            ["--scenario", "copyright", "--batch-size", "-1"],
            "option --batch-size is -1, it must be positive",
        ),
        (["--benchmark", "rwku", "--retrained", "m"], "has no number that needs a retrained model"),
        (["--forget", "f.jsonl", "--limit", "3"], "option --limit needs --benchmark"),
        (["--forget", "f.jsonl", "--retrained", "m"], "option --retrained needs --benchmark"),
        (["--benchmark", "tofu", "--data", "none.jsonl"], "none.jsonl is no file"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_two(
    capsys, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", "--model", "m", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_model_is_asked_as_its_run_asked_it_unless_an_option_says_otherwise(tmp_path):
    (tmp_path / "model").mkdir()
    chat = {"system": "Be kind.", "template_kwargs": {"x": 1}, "date": "2026-01-31"}
    (tmp_path / "run.json").write_text(json.dumps({"chat": {**chat, "max_new_tokens": 0}}))
    model = str(tmp_path / "model")
    found = EvalOptions("out").as_recorded(model)
    assert (found.system, found.chat_date, found.max_new_tokens) == ("Be kind.", "2026-01-31", None)
    other = EvalOptions("out", system="", max_new_tokens=4).as_recorded(model)
    assert (other.system, other.chat_template_kwargs, other.max_new_tokens) == ("", {"x": 1}, 4)
    assert (plain := EvalOptions("out")).as_recorded("owner/name") is plain
    with pytest.raises(UserError, match="option 'max_new_tokens' is 0"):
        EvalOptions("out", max_new_tokens=0).as_recorded(model)


def test_a_variable_that_the_template_does_not_read_is_refused_before_anything_is_loaded(
    tmp_path, chat_tokenizer
):
    chat_tokenizer.save_pretrained(tmp_path)  # no weights
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    options = EvalOptions("out", chat_template_kwargs={"enable_thinking": False})
    for refused in (options.as_recorded, options.load):
        with pytest.raises(UserError, match=r"unknown variable .* 'enable_thinking'"):
            refused(str(tmp_path))
