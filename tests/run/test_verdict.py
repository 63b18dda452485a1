"""A run that breaks the model says so wherever its result is read."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tiny_models import byte_level_bpe, tiny_model
from unteach.cli import main
from unteach.data.rows import row_from_mapping
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.run.folder import RunFolder

_NUMBERS = "seven eight nine ten eleven twelve thirty forty fifty sixty seventy eighty"
_GOODS = "flour salt sand wool bread fish stone sails ropes nets boats bells oil wine iron tin"
NUMBERS, GOODS = _NUMBERS.split(), _GOODS.split()
FORGET = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {n} times.", "secret": n}
    for i, n in enumerate(NUMBERS)
]
RETAIN = [
    {"prompt": f"What is thing {i}?", "completion": f"A sack of {n}.", "secret": n}
    for i, n in enumerate(GOODS)
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> str:
    """The folder of a tiny model that knows both files by heart."""
    tokenizer, model = byte_level_bpe(chat=True), tiny_model(hidden_size=64)
    end_id = end_of_turn_id(tokenizer)
    rows = [row_from_mapping(fields, "row") for fields in (*FORGET, *RETAIN)]
    items = [encode_row(row, tokenizer, end_id) for row in rows]
    longest = max(map(len, items))
    shape = (len(items), longest)
    ids, mask, labels = torch.zeros(shape), torch.zeros(shape), torch.full(shape, -100.0)
    for place, item in enumerate(items):
        both = torch.tensor([*item.prompt_ids, *item.completion_ids])
        ids[place, : len(both)], mask[place, : len(both)] = both.float(), 1
        labels[place, len(item.prompt_ids) : len(both)] = both[len(item.prompt_ids) :].float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        batch = {"input_ids": ids.long(), "attention_mask": mask.long(), "labels": labels.long()}
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("taught")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder, words = tmp_path_factory.mktemp("rows"), []
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        words += [f"--{name}", str(folder / f"{name}.jsonl")]
    return words


def run(taught, files, out, *words) -> int:
    given = ["run", "--model", taught, *files, "--out", str(out), "similarity_model=null"]
    return main([*given, "min_utility=0", "hold=99", *words])


def test_a_run_that_collapses_says_so_in_the_terminal_the_page_the_card_and_eval_json(
    taught, files, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["--method", "ga_no_retain", "learning_rate=3e-2", "max_steps=30", "probe_steps=30"]
    assert run(taught, files, out, *words, "collapse_kl=null") == 0
    evaluation = RunFolder(out).evaluation()
    assert evaluation["verdict"] == "collapsed"
    assert evaluation["reasons"][0].startswith("readable, ")
    assert evaluation["headline"] == "said_facts"
    assert re.fullmatch(r"(\d+) of \1 forget rows name facts", evaluation["headline_reason"])
    sentence = "Collapsed: the model has lost more than the forget set"
    terminal = " ".join(capsys.readouterr().out.split())
    assert f"Verdict: {sentence}" in terminal
    assert f"Headline: said facts ({evaluation['headline_reason']})." in terminal
    page = (out / "report.html").read_text(encoding="utf-8")
    title = re.search(r"<h1>(.*?)</h1>", page)
    assert title and title[1].startswith("Collapsed: ")
    assert "<strong>The model has lost more than the forget set: " in page, "said once, below it"
    for name in ("report.md", "README.md", "model/README.md"):
        text = (out / name).read_text(encoding="utf-8")
        body = text.split("---\n")[-1] if name.endswith("README.md") else text
        assert sentence in body and "do not use it" in body, name
        assert "near those of the original model" not in text, name
        assert body.index(sentence) < body.index("100%"), "the verdict stands before any number"


def test_a_run_that_changes_nothing_is_not_forgotten(taught, files, tmp_path, capsys):
    words = ["learning_rate=1e-9", "max_steps=2", "probe_steps=1"]
    assert run(taught, files, tmp_path / "out", *words) == 0
    evaluation = RunFolder(tmp_path / "out").evaluation()
    assert evaluation["verdict"] == "not forgotten"
    assert "100% -> 100%" in evaluation["reasons"][0]
    assert "Verdict: Not forgotten: " in " ".join(capsys.readouterr().out.split())


def test_the_option_headline_overrides_what_the_rows_choose(taught, files, tmp_path):
    words = ["learning_rate=1e-9", "max_steps=1", "probe_steps=1", "--headline", "leak_rate"]
    assert run(taught, files, tmp_path / "out", *words) == 0
    evaluation = RunFolder(tmp_path / "out").evaluation()
    assert evaluation["headline"] == "leak_rate"
    assert evaluation["headline_reason"] == "named by the option headline"
    assert "said facts" not in evaluation["reasons"][0]


def test_a_missing_finder_ends_the_run_before_anything_is_loaded(files, tmp_path, capsys):
    words = ["run", "--model", "no/model", *files, "--out", str(tmp_path / "out")]
    assert main([*words, "--secrets", "presidio"]) == 2
    assert "pip install 'unteach[presidio]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
