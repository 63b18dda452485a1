"""Forget requests one after another on a tiny model: ledger, patches, rows, crashes, purge."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tiny_models import byte_level_bpe, tiny_model
from unteach import unlearn
from unteach.cli import main
from unteach.config.resolve import resolve
from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row, rows_hash
from unteach.data.tokenization import render_prompt
from unteach.errors import UserError
from unteach.evaluation.scorers import Scorers, leak_scorer
from unteach.files.checkpoints import mark_complete
from unteach.models import load_model, weights_hash
from unteach.prepare.generations import LoadedModel
from unteach.progress import Display
from unteach.requests import forget_requests, patches
from unteach.requests.forget_requests import (
    change_patch,
    forget_rate,
    forget_request,
    merge_patches,
    read_rows,
    rows_of,
    write_rows,
)
from unteach.requests.ledger import read_ledger
from unteach.requests.purge import purge
from unteach.scenarios.user_rows import user_scenario

SETTINGS = {
    "max_steps": 2,
    "probe_steps": 2,
    "save_steps": 2,
    "similarity_model": None,
    "learning_rate": 1e-2,
    "lora_rank": 2,
    "rounds": 1,
    "hold": 99,
    "min_utility": 0,
    "max_new_tokens": 12,
}


def rows(word: str, count: int = 4) -> list[dict[str, str]]:
    return [
        {"prompt": f"Who is {word} {i}?", "completion": f"The {word} of the river, number {i}."}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def base(saved_model: str) -> str:
    return saved_model


@pytest.fixture(scope="module")
def two(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two requests by adapters."""
    folder = tmp_path_factory.mktemp("ledger") / "requests"
    forget_request(folder, rows("ferryman"), model=base, **SETTINGS)
    forget_request(folder, rows("miller"), **SETTINGS)
    return folder


def test_each_request_goes_on_from_the_model_of_the_last(two, base):
    first, second = read_ledger(two).requests
    assert first["model_in"] == weights_hash(load_model(base))
    assert second["model_in"] == first["model_out"] != second["model_out"]
    assert set(second["earlier"]) == {"1"} and first["earlier"] == {}
    assert second["kind"] == "adapter"
    assert all(0 <= entry[name] <= 1 for entry in (first, second) for name in ("before", "after"))
    assert set(first["cut_off"]) == {"before", "after"}
    assert set(second["cut_off"]) == {"before", "after", "1"}


def test_the_ledger_holds_no_text(two):
    text = (two / "requests.jsonl").read_text()
    assert "ferryman" not in text and "miller" not in text and "river" not in text


def test_the_record_of_a_request_names_what_an_auditor_asks_and_no_text(two, capsys):
    assert main(["requests", str(two), "--audit", "2"]) == 0
    place = two / "request-002" / "audit.html"
    assert capsys.readouterr().out == f"Record: {place}\n"
    page, ledger = place.read_text(encoding="utf-8"), read_ledger(two)
    entry = ledger.request(2)
    named = [entry[name] for name in ("time", "model_in", "model_out", "previous", "method")]
    named += [entry["data"]["hash"], entry["data"]["completed_hash"], ledger.last_hash]
    assert all(fact in page for fact in named) and "request 1: " in page and "in force" in page
    assert "miller" not in page and "river" not in page and str(two) not in page
    assert main(["requests", str(two), "--audit", "7"]) == 2
    assert "there is no request 7" in capsys.readouterr().err


def test_the_adapter_of_the_folder_is_the_model_of_the_last_line(two, tmp_path):
    merge_patches(two, tmp_path / "whole")
    digest = weights_hash(load_model(str(tmp_path / "whole")))
    assert digest == read_ledger(two).requests[-1]["model_out"]
    assert (two / "adapter" / "adapter_model.safetensors").is_file()


def test_the_same_rows_again_are_no_second_request(two):
    before = (two / "requests.jsonl").read_bytes()
    assert forget_request(two, rows("miller"), **SETTINGS)["id"] == 2
    assert (two / "requests.jsonl").read_bytes() == before


def test_a_patch_taken_out_leaves_the_model_that_never_had_it_and_comes_back_whole(two, base):
    first, second = read_ledger(two).requests
    out = change_patch(two, 2, remove=True)
    assert out["model_out"] == first["model_out"] and set(out["rates"]) == {"1", "2"}
    assert set(out["cut_off"]) == {"1", "2"}
    with pytest.raises(UserError, match="the patch of request 2 is removed already"):
        change_patch(two, 2, remove=True)
    assert change_patch(two, 2, remove=False)["model_out"] == second["model_out"]
    with pytest.raises(UserError, match=r"there is no request 7 in the ledger \(there are: 1, 2\)"):
        change_patch(two, 7, remove=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"full": True}, "the requests of this folder train adapters"),
        ({"model": "another"}, "option --model is 'another', but the requests"),
        ({"target": 1.5}, "option 'target' is 1.5"),
        ({"rounds": 0}, "option 'rounds' is 0"),
        ({"lora": False}, "option 'lora' is not one of a request"),
        ({"hold_out": 0.3}, "option 'hold_out' is not one of a request"),
    ],
)
def test_what_does_not_go_with_the_ledger_is_refused(two, changed, message):
    with pytest.raises(UserError, match=message):
        forget_request(two, rows("weaver"), **(SETTINGS | changed))


def test_the_first_request_names_the_model(tmp_path):
    with pytest.raises(UserError, match="option --model is missing: the first request"):
        forget_request(tmp_path / "new", rows("weaver"), **SETTINGS)


@pytest.mark.parametrize("moment", ["before the line", "after the line"])
def test_a_request_killed_around_its_line_goes_on_with_the_same_command(
    two, base, tmp_path, monkeypatch, moment
):
    """And ends with the model of the first request of `two`, which nothing interrupted."""

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before the line":
            patch.setattr(forget_requests, "append", die)
        else:
            calls = iter([lambda *_, **__: None, die])
            patch.setattr(patches, "refresh_adapter", lambda *a, **k: next(calls)(*a, **k))
        with pytest.raises(Killed):
            forget_request(tmp_path / "killed", rows("ferryman"), model=base, **SETTINGS)
    entry = forget_request(tmp_path / "killed", rows("ferryman"), model=base, **SETTINGS)
    (killed,), whole = read_ledger(tmp_path / "killed").requests, read_ledger(two).requests[0]
    assert killed["model_out"] == whole["model_out"] == entry["model_out"]
    assert (tmp_path / "killed" / "adapter" / "adapter_model.safetensors").is_file()


def test_an_earlier_request_that_comes_back_is_trained_on_again(base, tmp_path, monkeypatch):
    trained = []
    inner = forget_requests.user_scenario

    def scenario(given, *more, **options):
        trained.append(len(given))
        return inner(given, *more, **options)

    monkeypatch.setattr(forget_requests, "user_scenario", scenario)
    monkeypatch.setattr(forget_requests, "forget_rate", lambda *_: (0.5, 0.0))
    forget_request(tmp_path / "ledger", rows("ferryman"), model=base, **SETTINGS)
    entry = forget_request(tmp_path / "ledger", rows("miller"), **(SETTINGS | {"rounds": 2}))
    assert trained == [4, 4, 8] and entry["rounds"] == 2
    assert entry["run"] == "request-002/round-2" and entry["earlier"] == {"1": 0.5}


def test_all_weights_go_on_from_the_model_folder_and_have_no_patch(base, tmp_path):
    settings = {**SETTINGS, "full": True}
    del settings["lora_rank"]
    folder = tmp_path / "full"
    first = forget_request(folder, rows("ferryman"), model=base, **settings)
    second = forget_request(folder, rows("miller"), **settings)
    digest = weights_hash(load_model(str(folder / first["model"])))
    assert second["model_in"] == first["model_out"] == digest
    with pytest.raises(UserError, match="request 1 trained all weights: it has no patch"):
        change_patch(folder, 1, remove=True)
    assert any("request-001/round-1/model/" in line for line in purge(folder))
    assert (folder / second["model"]).is_dir()


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a model in bfloat16 and of an adapter on it."""
    root = tmp_path_factory.mktemp("adapter")
    tiny_model().to(torch.bfloat16).save_pretrained(root / "model")
    byte_level_bpe(chat=True).save_pretrained(root / "model")
    settings = {name: value for name, value in SETTINGS.items() if name != "rounds"}
    unlearn(
        str(root / "model"), rows("weaver"), output_dir=str(root / "out"), lora=True, **settings
    )
    return str(root / "model"), str(root / "out" / "adapter")


@pytest.mark.parametrize("full", [True, False])
def test_a_request_on_an_adapter_starts_from_it_and_keeps_the_precision_of_its_base(
    adapter, tmp_path, full
):
    settings = {**SETTINGS, "full": full}
    if full:
        del settings["lora_rank"]
    for number, word in enumerate(("ferryman", "miller")):
        entry = forget_request(tmp_path, rows(word), model=adapter[1], **settings)
        started = number or entry["model_in"] == weights_hash(load_model(adapter[1]))
        assert started and entry["model_in"] != entry["model_out"]
    whole = tmp_path / str(entry.get("model", "whole"))
    if not full:
        merge_patches(tmp_path, whole)
    assert json.loads((whole / "config.json").read_text())["dtype"] == "bfloat16"
    for file in whole.glob("*.safetensors"):
        assert {weight.dtype for weight in load_file(file).values()} == {torch.bfloat16}


def test_every_rate_of_a_request_is_measured_with_the_chat_settings_of_its_run(
    base, tmp_path, monkeypatch
):
    """Prompts begin with the system prompt of the request whose rows they are of."""
    seen = []
    inner = forget_requests.generate_answers

    def answers(model, tokenizer, asked, **options):
        prompt = render_prompt(asked[0], tokenizer)
        seen.append((asked[0].prompt.split()[2], prompt.partition("<|im_end|>")[0]))
        assert options["max_new_tokens"] == 3
        return inner(model, tokenizer, asked, **options)

    monkeypatch.setattr(forget_requests, "generate_answers", answers)
    chat = {"max_new_tokens": 3, "chat_date": "2026-01-31"}
    first = {**SETTINGS, **chat, "system": "Be brief."}
    forget_request(tmp_path, rows("ferryman"), model=base, **first)
    entry = forget_request(tmp_path, rows("miller"), **{**SETTINGS, **chat, "system": "Rhyme."})
    change_patch(tmp_path, 2, remove=True)
    said = {"ferryman": "<|im_start|>system\nBe brief.", "miller": "<|im_start|>system\nRhyme."}
    assert {word for word, _ in seen} == set(said) and len(seen) >= 6
    assert all(prompt == said[word] for word, prompt in seen)
    record = json.loads((tmp_path / entry["run"] / "run.json").read_text())["chat"]
    assert record["system"] == "Rhyme." and record["date"] == "2026-01-31"
    assert json.loads((tmp_path / entry["run"] / "eval.json").read_text())["chat"] == record


def test_a_purge_takes_the_rows_and_leaves_patches_and_ledger(base, tmp_path):
    folder = tmp_path / "ledger"
    forget_request(folder, rows("ferryman"), model=base, **SETTINGS)
    purge(folder)
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in left if b"ferryman" in path.read_bytes()]
    entry = forget_request(folder, rows("miller"), **SETTINGS)
    assert entry["id"] == 2 and entry["earlier"] == {}


def test_the_commands(base, tmp_path, capsys):
    file, folder = tmp_path / "forget.jsonl", str(tmp_path / "ledger")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows("ferryman")), encoding="utf-8")
    words = ["max_steps=2", "probe_steps=2", "save_steps=2", "--rounds", "1", "--lora-rank", "2"]
    assert main(["request", folder, "--forget", str(file), *words]) == 2
    assert "option --model is missing" in capsys.readouterr().err
    assert main(["request", folder, "--forget", str(file), "--model", base, *words]) == 0
    assert "Request 1: leak_rate" in capsys.readouterr().out
    assert main(["requests", folder]) == 0
    assert "Forget requests" in capsys.readouterr().out
    assert main(["requests", folder, "--remove", "1"]) == 0
    assert "removed" in capsys.readouterr().out
    assert main(["requests", folder, "--merge", str(tmp_path / "whole")]) == 0
    assert weights_hash(load_model(str(tmp_path / "whole"))) == weights_hash(load_model(base))
    assert main(["requests", str(tmp_path / "nothing")]) == 2
    assert "has no requests" in capsys.readouterr().err


def test_rows_of_any_request_that_holds_are_no_second_one(two):
    assert forget_request(two, rows("ferryman"), **SETTINGS)["id"] == 1
    assert len(read_ledger(two).requests) == 2


def test_a_merge_replaces_nothing_that_no_merge_has_written(two, tmp_path):
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "thesis.tex").write_text("all of it")
    (kept / "taught").mkdir()
    mark_complete(tmp_path / "mine" / "taught", {"key": "of a taught model"})
    for place in (kept, two, two.parent, kept / "taught"):
        with pytest.raises(UserError, match="holds something other than a merged model"):
            merge_patches(two, place)
    assert (kept / "thesis.tex").read_text() == "all of it" and (two / "requests.jsonl").exists()
    for _ in range(2):
        merge_patches(two, tmp_path / "whole")


ROWS = [
    Row("Who rang?", "The ferryman.", "chat", "f, line 1", secret=("ferryman",)),
    Row((("user", "And then?"),), "He slept.", right="He sang."),
]


def test_rows_come_back_as_they_were_and_only_their_owner_can_read_them(tmp_path):
    write_rows(tmp_path / "work", ROWS)
    assert read_rows(tmp_path / "work") == ROWS
    assert stat.S_IMODE((tmp_path / "work").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "work" / "rows.jsonl").stat().st_mode) == 0o600


def test_rows_that_were_purged_are_read_from_their_file_if_it_holds_the_same(tmp_path):
    file = tmp_path / "forget.jsonl"
    fields = {"prompt": "Who rang?", "completion": "The ferryman.", "secret": "ferryman"}
    file.write_text(json.dumps(fields) + "\n")
    entry = {"id": 1, "data": {"file": str(file), "completed_hash": rows_hash(ROWS[:1])}}
    assert rows_hash(rows_of(tmp_path, entry)) == rows_hash(ROWS[:1])
    file.write_text(json.dumps({"prompt": "Who rang?", "completion": "Nobody."}) + "\n")
    assert rows_of(tmp_path, entry) == []


def test_purged_rows_get_the_secrets_that_their_request_found(tmp_path):
    file = tmp_path / "forget.jsonl"
    file.write_text(json.dumps({"prompt": "How?", "completion": "Mail a@b.example."}) + "\n")
    wanted = rows_hash([Row("How?", "Mail a@b.example.", secret=("a@b.example",))])
    data = {"file": str(file), "completed_hash": wanted, "secrets": "patterns"}
    (found,) = rows_of(tmp_path, {"id": 1, "data": data})
    assert found.secret == ("a@b.example",)
    assert rows_of(tmp_path, {"id": 1, "data": data | {"secrets": "none"}}) == []


def test_a_rate_is_measured_once(tmp_path):
    scorers = Scorers(ScorerNames(similarity=None), {"leak_rate": leak_scorer(5.0)})
    display = Display(quiet=True)
    source = LoadedModel.of(tiny_model(), byte_level_bpe(chat=True), tmp_path, display)
    rate = forget_rate(source, scorers, ROWS)
    assert 0 <= rate[0] <= 1 and rate[1] == 1.0, "random weights end no answer"
    assert forget_rate(replace(source, model=None), scorers, ROWS) == rate


def test_a_request_s_rows_are_all_forgotten_and_none_is_held_out():
    scenario = user_scenario(ROWS, None)
    assert scenario.forget == ROWS and scenario.validation == [] and "unseen" not in scenario.sets


def test_a_request_takes_the_method_and_the_settings_of_a_run(two, base, tmp_path):
    entry = read_ledger(two).requests[0]
    assert entry["method"] == "counterfactual"  # the rows are short answers
    given = {"model": base, "output_dir": str(tmp_path), "lora": True, **SETTINGS}
    del given["rounds"]
    known = yaml.safe_load((two / entry["run"] / "config.yaml").read_text())
    assert known["filled_in"] == resolve(given).with_rows(method="counterfactual").filled_in != {}
