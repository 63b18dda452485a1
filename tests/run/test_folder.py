"""`RunFolder`: a finished run's files, rows, scorers and models."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import tiny_models
from unteach import models, unlearn
from unteach.cli import main
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.prepare.generations import GenerationCache, LoadedModel, with_own_answers
from unteach.progress import Display
from unteach.run.folder import ORIGINAL, UNLEARNED, RunFolder

SHORT = tiny_models.SHORT | {"max_steps": 1}


def write_rows(path: Path, name: str) -> str:
    rows = [{"prompt": f"Who is {name} {i}?", "completion": f"A {name}, {i}."} for i in range(14)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(saved_model, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    shutil.copytree(saved_model, root / "model")
    names = ("forget", "retain", "unseen", "neighbours")
    files = {name: write_rows(root / f"{name}.jsonl", name) for name in names}
    unlearn(str(root / "model"), **files, output_dir=str(root / "out"), **SHORT)
    return root / "out"


@pytest.fixture(scope="module")
def folder(finished) -> RunFolder:
    return RunFolder(finished)


def test_its_files_are_read(folder):
    assert folder.record()["steps"] == 1
    assert set(folder.evaluation()["models"]) == {"original", "unlearned"}
    assert {line["model"] for line in folder.generations()} == {"original", "unlearned"}


def test_its_prompt_sets_become_tasks_that_only_their_owner_reads(finished, tmp_path, capsys):
    assert main(["report", str(finished), "--tasks", str(tmp_path / "tasks")]) == 0
    assert "rows without a prompt or an expected answer are left out" in capsys.readouterr().out
    lines = (tmp_path / "tasks" / "unseen.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    assert row["input"].startswith("Who is unseen") and row["target"].startswith("A unseen,")
    known = [line["key"] for line in RunFolder(finished).generations() if line["set"] == "unseen"]
    assert row["id"] in known and len(lines) == len(set(known))
    tasks = {
        name: yaml.safe_load((tmp_path / "tasks" / f"{name}.yaml").read_text())
        for name in ("unlearned", "kept")
    }
    assert [task["metric_list"][0]["higher_is_better"] for task in tasks.values()] == [False, True]
    assert tasks["kept"]["task"] == "unteach_kept"
    assert stat.S_IMODE((tmp_path / "tasks").stat().st_mode) == 0o700


def test_tasks_leave_what_is_in_their_folder_as_it_is(finished, tmp_path, capsys):
    tmp_path.chmod(0o755)
    mine = tmp_path / "unseen.jsonl"
    mine.write_text("mine")
    command = ["report", str(finished), "--tasks"]
    assert main([*command, str(tmp_path)]) == 2
    assert "unseen.jsonl is there and no task of unteach: name another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert mine.read_text() == "mine"
    mine.rename(tmp_path / "others.jsonl")
    assert main([*command, str(tmp_path)]) == 0 == main([*command, str(tmp_path)])
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert stat.S_IMODE(mine.stat().st_mode) == 0o600
    for option in ("--tasks", "--push-to-hub"):
        assert main(["report", str(finished), option, ""]) == 2
        assert f"option {option} is empty" in capsys.readouterr().err


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("run.json", "{", "run.json cannot be read"),
        ("run.json", "[]", "run.json is broken: its content is [], it must be a mapping"),
        ("run.json", "{}", "run.json is broken: its content has no field 'model'"),
        ("eval.json", "null", "eval.json is broken: its content is None"),
        ("eval.json", '{"models": 3}', "eval.json is broken: models is 3, it must be a mapping"),
        ("config.yaml", "x: [", "config.yaml cannot be read"),
        ("generations.jsonl", "{", "generations.jsonl cannot be read"),
    ],
)
def test_a_damaged_file_of_a_run_is_a_sentence(copied, capsys, name, text, sentence):
    (copied / name).write_text(text)
    for command in (["attack", str(copied), "--level", "quick"], ["report", str(copied)]):
        command += ["--tasks", str(copied.parent / "tasks")] * (command[0] == "report")
        assert main(command) == 2
        assert sentence in capsys.readouterr().err


def test_fields_of_another_version_are_a_sentence(copied, capsys):
    record = json.loads((copied / "run.json").read_text())
    record["data_files"]["whence"] = "x"
    (copied / "run.json").write_text(json.dumps(record))
    assert main(["attack", str(copied), "--level", "quick"]) == 2
    assert "field 'data_files' holds 'whence', which this version" in capsys.readouterr().err


def test_damaged_caches_are_made_anew_and_a_damaged_configuration_is_set_aside(copied, capsys):
    command = ["run", "--model", str(copied.parent / "m"), "--out", str(copied)]
    shutil.copytree(RunFolder(copied).model_paths()[ORIGINAL], copied.parent / "m")
    files = [str(RunFolder(copied).record()["data_files"][name]) for name in ("forget", "retain")]
    command += ["--forget", files[0], "--retain", files[1], "--similarity-model", "none"]
    command += ["max_steps=1", "min_utility=0", "probe_steps=1"]
    assert main(command) == 0  # other rows: the folder is set aside
    evaluation = (copied / "eval.json").read_text()
    for path in (copied / "work").glob("*.json"):
        path.write_text("{")
    assert main(command) == 0 and (copied / "eval.json").read_text() == evaluation
    capsys.readouterr()
    (copied / "config.yaml").write_text("chat: [")
    assert main(command) == 0
    assert f"it is now {copied}-2" in "".join(capsys.readouterr().out.split("\n"))
    assert (copied.parent / "copied-2" / "config.yaml").read_text() == "chat: ["


def test_the_model_is_pushed_with_its_card_to_a_private_repository(finished, monkeypatch, capsys):
    asked = []

    class Api:
        def create_repo(self, name, **options):
            if "/" not in name:
                raise OSError("no route to the hub")
            asked.append((name, options))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, repo_id, folder_path):
            asked.append((repo_id, (folder_path / "README.md").is_file(), folder_path.name))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert main(["report", str(finished), "--push-to-hub", "me/it"]) == 0
    assert asked == [("me/it", {"private": True, "exist_ok": True}), ("me/it", True, "model")]
    assert "Pushed: " in capsys.readouterr().out
    assert main(["report", str(finished), "--push-to-hub", "it"]) == 2
    assert "'it' could not be pushed; log in by `hf auth login`" in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_refused_by_the_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"has no run\.json"):
        RunFolder(tmp_path)


def test_the_scenario_is_rebuilt_and_other_rows_are_refused(folder, finished):
    scenario = folder.scenario()
    assert len(scenario.forget) == folder.record()["forget_rows"]
    measured = scenario.sets
    evaluated = folder.evaluation()["models"]["unlearned"]
    assert {"unlearned", "unseen", "neighbours", "kept", "kept_unseen", "normal"} <= set(evaluated)
    for name, part in measured.items():
        assert evaluated[name]["readability"]["n"] == len(part)
    assert scenario.neighbours and len(measured["unseen"]) == 14
    other = write_rows(finished.parent / "other.jsonl", "other")
    with pytest.raises(UserError, match="not those that this run forgot"):
        folder.scenario(forget=other)
    with pytest.raises(UserError, match="not those that this run kept"):
        folder.scenario(retain=other)
    with pytest.raises(UserError, match=r"not those that this run kept; name .* --neighbours"):
        folder.scenario(neighbours=other)


def test_the_headline_scorer_is_the_run_s(folder):
    scorers = folder.scorers(folder.scenario())
    assert scorers.names.headline == "leak_rate"
    assert scorers.threshold == folder.record()["leak_threshold_bleu"]


def test_models_for_reading_are_read_once_and_changes_to_a_copy_reach_no_other(folder, monkeypatch):
    read = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda name, **how: read.append(name) or load(name))
    folder = RunFolder(folder.path)
    for role in (ORIGINAL, UNLEARNED, ORIGINAL, UNLEARNED):
        assert models.weights_hash(folder.model(role)) == folder.record()[f"{role}_model_hash"]
    assert sorted(read) == sorted(folder.model_paths().values())
    changed = folder.load_model(UNLEARNED, exact=True)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    for model in (folder.load_model(UNLEARNED), folder.model(UNLEARNED)):
        assert models.weights_hash(model) == folder.record()["unlearned_model_hash"]


def test_another_model_in_the_original_s_place_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    changed = models.load_model(record["model"])
    changed.get_input_embeddings().weight.data.mul_(1.5)
    changed.save_pretrained(tmp_path / "changed")
    record["model"] = str(tmp_path / "changed")
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not the one that this run started from"):
        RunFolder(tmp_path / "out").load_model(ORIGINAL)


def test_generations_are_cached_by_model_and_inputs(tmp_path):
    made = []

    def make() -> list[str]:
        made.append(1)
        return ["text"]

    cache = GenerationCache(tmp_path, "hash")
    assert cache.get("said", [1], make) == cache.get("said", [1], make) == ["text"]
    assert len(made) == 1 and cache.seconds("said", [1]) >= 0.0
    cache.get("said", [2], make)
    GenerationCache(tmp_path, "another hash").get("said", [1], make)
    assert len(made) == 3 and cache.seconds("said", [3]) == 0.0


def test_own_answers_of_the_run_are_found_in_its_cache(folder):
    source = LoadedModel(
        folder.load_model(ORIGINAL),
        folder.tokenizer(),
        folder.cache(folder.model_hash(ORIGINAL)),
        Display(quiet=True),
    )
    rows = [Row("Who is it?", ""), Row("And now?", "Nobody.")]
    filled, costs = with_own_answers(source, rows, "Collecting")
    assert filled[-1].completion == "Nobody." and len(costs) == 1
    asleep = LoadedModel(None, source.tokenizer, source.cache, source.display)
    assert with_own_answers(asleep, rows, "Collecting") == (filled, costs)
