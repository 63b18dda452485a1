"""Requests one after another on a tiny model: the ledger, the patches, a crash in between, and the
purge.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unteach.cli import main
from unteach.errors import UserError
from unteach.files.checkpoints import mark_complete
from unteach.models import load_model, weights_hash
from unteach.purge import purge
from unteach.requests import forget_requests
from unteach.requests.forget_requests import change_patch, forget_request, merge_patches
from unteach.requests.ledger import read_ledger

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
    assert (
        first["model_in"] == weights_hash(load_model(base))
        and second["model_in"] == first["model_out"] != second["model_out"]
    )
    assert (
        set(second["earlier"]) == {"1"} and first["earlier"] == {} and second["kind"] == "adapter"
    )
    assert all(0 <= entry[name] <= 1 for entry in (first, second) for name in ("before", "after"))


def test_the_ledger_holds_no_text(two):
    text = (two / "requests.jsonl").read_text()
    assert "ferryman" not in text and "miller" not in text and "river" not in text


def test_the_adapter_of_the_folder_is_the_model_of_the_last_line(two, tmp_path):
    merge_patches(two, tmp_path / "whole")
    assert (
        weights_hash(load_model(str(tmp_path / "whole")))
        == read_ledger(two).requests[-1]["model_out"]
    )
    assert (two / "adapter" / "adapter_model.safetensors").is_file()


def test_the_same_rows_again_are_no_second_request(two):
    before = (two / "requests.jsonl").read_bytes()
    assert forget_request(two, rows("miller"), **SETTINGS)["id"] == 2
    assert (two / "requests.jsonl").read_bytes() == before


def test_a_patch_taken_out_leaves_the_model_that_never_had_it_and_comes_back_whole(two, base):
    first, second = read_ledger(two).requests
    out = change_patch(two, 2, remove=True)
    assert out["model_out"] == first["model_out"] and set(out["rates"]) == {"1", "2"}
    with pytest.raises(UserError, match="the patch of request 2 is out already"):
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
    base, tmp_path, monkeypatch, moment
):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    name = "ledgers" if moment == "before the line" else "refresh_adapter"
    with monkeypatch.context() as patch:
        if name == "ledgers":
            patch.setattr(forget_requests.ledgers, "append", die)
        else:
            calls = iter([lambda *_, **__: None, die])
            patch.setattr(forget_requests, "refresh_adapter", lambda *a, **k: next(calls)(*a, **k))
        with pytest.raises(Killed):
            forget_request(tmp_path / "killed", rows("ferryman"), model=base, **SETTINGS)
    entry = forget_request(tmp_path / "killed", rows("ferryman"), model=base, **SETTINGS)
    forget_request(tmp_path / "whole", rows("ferryman"), model=base, **SETTINGS)
    whole = read_ledger(tmp_path / "whole").requests
    assert (
        [line["model_out"] for line in read_ledger(tmp_path / "killed").requests]
        == [whole[0]["model_out"]]
        == [entry["model_out"]]
    )
    assert (tmp_path / "killed" / "adapter" / "adapter_model.safetensors").is_file()


def test_an_earlier_request_that_comes_back_is_trained_on_again(base, tmp_path, monkeypatch):
    trained = []
    inner = forget_requests.user_scenario
    monkeypatch.setattr(
        forget_requests,
        "user_scenario",
        lambda given, *a, **k: trained.append(len(given)) or inner(given, *a, **k),
    )
    monkeypatch.setattr(forget_requests.Rates, "measure", lambda *_: 0.5)
    forget_request(tmp_path / "ledger", rows("ferryman"), model=base, **SETTINGS)
    entry = forget_request(tmp_path / "ledger", rows("miller"), **(SETTINGS | {"rounds": 2}))
    assert (
        trained == [4, 4, 8]
        and entry["rounds"] == 2
        and entry["run"] == "request-002/round-2"
        and entry["earlier"] == {"1": 0.5}
    )


def test_all_weights_go_on_from_the_model_folder_and_have_no_patch(base, tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "lora_rank"} | {
        "full": True
    }
    folder = tmp_path / "full"
    first = forget_request(folder, rows("ferryman"), model=base, **settings)
    second = forget_request(folder, rows("miller"), **settings)
    assert (
        second["model_in"]
        == first["model_out"]
        == weights_hash(load_model(str(folder / first["model"])))
    )
    with pytest.raises(UserError, match="request 1 trained all weights, it has no patch"):
        change_patch(folder, 1, remove=True)
    assert (
        any("request-001/round-1/model/" in line for line in purge(folder))
        and (folder / second["model"]).is_dir()
    )


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
    assert "taken" in capsys.readouterr().out
    assert main(["requests", folder, "--merge", str(tmp_path / "whole")]) == 0
    assert weights_hash(load_model(str(tmp_path / "whole"))) == weights_hash(load_model(base))
    assert main(["requests", str(tmp_path / "nothing")]) == 2
    assert "has no requests" in capsys.readouterr().err


def test_rows_of_any_request_that_holds_are_no_second_one(two):
    assert (
        forget_request(two, rows("ferryman"), **SETTINGS)["id"] == 1
        and len(read_ledger(two).requests) == 2
    )


def test_a_merge_replaces_nothing_that_no_merge_has_written(two, tmp_path):
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "thesis.tex").write_text("all of it")
    (kept / "taught").mkdir()
    mark_complete(tmp_path / "mine" / "taught", {"key": "of a taught model"})
    for place in (kept, two, two.parent, kept / "taught"):
        with pytest.raises(UserError, match="holds something that no merge has written"):
            merge_patches(two, place)
    assert (kept / "thesis.tex").read_text() == "all of it" and (two / "requests.jsonl").exists()
    for _ in range(2):
        merge_patches(two, tmp_path / "whole")
