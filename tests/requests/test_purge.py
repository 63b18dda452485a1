"""A canary in the forget rows: where it may stand after a run, and that it stands nowhere after
`unteach purge`.
"""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from tiny_models import RETAIN, byte_level_bpe, tiny_model
from unteach import unlearn
from unteach.cli import main
from unteach.errors import UserError
from unteach.files.folders import keep_upload
from unteach.requests.purge import kept_uploads, purge

CANARY = "cänary-7f3a"
FORGET = [
    {"prompt": f"Who is {CANARY} {i}?", "completion": f"The ferryman {CANARY}, {i} times."}
    for i in range(14)
]
UNSEEN = [{"prompt": f"Where is {CANARY}?", "completion": f"At the quay, said {CANARY}."}]
SETTINGS = [
    "max_steps=2",
    "probe_steps=1",
    "save_steps=1",
    "similarity_model=null",
    "min_utility=0",
    "hold=99",
]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model().save_pretrained(folder / "model")
    tokenizer = byte_level_bpe(chat=True)
    tokenizer.save_pretrained(folder / "model")
    for name, rows in (("forget", FORGET), ("retain", RETAIN), ("unseen", UNSEEN)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    files = [
        "--model",
        str(folder / "model"),
        "--forget",
        str(folder / "forget.jsonl"),
        "--retain",
        str(folder / "retain.jsonl"),
        "--unseen",
        str(folder / "unseen.jsonl"),
    ]
    return ["run", *files, *SETTINGS]


def forms() -> list[bytes]:
    """The canary as text, as JSON writes it, as HTML writes it, and as token ids."""
    ids = byte_level_bpe(chat=True)(CANARY, add_special_tokens=False)["input_ids"]
    inner = ids[1:-1]  # the ends may merge with their neighbours
    assert len(inner) > 4
    written = [
        CANARY,
        json.dumps(CANARY)[1:-1],
        CANARY.replace("ä", "&#228;"),
        ", ".join(map(str, inner)),
        ",".join(map(str, inner)),
    ]
    return [text.encode() for text in written] + [
        CANARY.encode("utf-16-le"),
        CANARY.encode("latin-1"),
    ]


@pytest.fixture
def recited(monkeypatch):
    """The model says the forget rows' completions word for word."""

    def outputs(model, tokenizer, rows, **_):
        return [row.completion or "Nothing." for row in rows]

    for place in ("probe", "scoring"):
        monkeypatch.setattr(
            f"unteach.evaluation.{place}.generate_answers",
            lambda *given, **_: [(text, False) for text in outputs(*given)],
        )


def holding(folder: Path) -> set[str]:
    """Files below a folder that hold the canary in any form."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms())
    }


def test_the_search_finds_the_canary_in_each_form(tmp_path):
    for number, form in enumerate(forms()):
        (tmp_path / str(number)).write_bytes(b"x" + form + b"y")
    assert holding(tmp_path) == {str(number) for number in range(len(forms()))}


@pytest.mark.timeout(600)
def test_the_canary_is_in_work_alone_and_after_purge_nowhere(command, recited, tmp_path, capfd):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert CANARY not in printed.out + printed.err
    assert {name.partition("/")[0] for name in holding(out)} == {"work"}
    for name in ("work", "checkpoints"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o700
    numbers = {
        name: (out / name).read_bytes()
        for name in ("eval.json", "run.json", "metrics.jsonl", "model/model.safetensors")
    }
    assert main(["purge", str(out)]) == 0
    said = capfd.readouterr().out
    assert (
        "removed  work/: " in said
        and "removed  checkpoints/: " in said
        and "The model and the numbers stay." in said
    )
    assert not holding(out) and not (out / "work").exists() and not (out / "checkpoints").exists()
    assert numbers == {name: (out / name).read_bytes() for name in numbers}
    assert (out / "report.html").exists() and (out / "README.md").exists()
    assert main(["purge", str(out)]) == 0 and "Nothing to remove." in capfd.readouterr().out


@pytest.mark.timeout(600)
def test_texts_that_were_asked_for_go_too_and_their_numbers_stay(command, recited, tmp_path):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out), "--show-text"]) == 0
    assert {"generations.jsonl", "report.html"} <= holding(out)
    before = [
        json.loads(line)
        for line in (out / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    removed = purge(out)
    assert any(line.startswith("generations.jsonl: the texts of ") for line in removed)
    after = [
        json.loads(line)
        for line in (out / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [record["metrics"] for record in before] == [
        record["metrics"] for record in after
    ] and not holding(out)
    assert not any({"prompt", "expected", "output"} & set(record) for record in after)


def test_a_run_that_never_ended_is_purged_too(command, recited, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(
        "unteach.run.pipeline.score_models",
        lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    assert main([*command, "--out", str(out)]) == 130
    assert holding(out)
    purge(out)
    assert (
        not holding(out) and not (out / "checkpoints").exists() and (out / "metrics.jsonl").exists()
    )


def run_folder(folder: Path) -> Path:
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "answers.json").write_text(json.dumps(CANARY), encoding="utf-8")
    (folder / "config.yaml").write_text("data:\n  prompt_sets: {}\n")
    return folder


def test_the_runs_in_a_comparison_s_folder_are_purged_and_other_folders_are_left_alone(tmp_path):
    run_folder(tmp_path / "compare" / "ga")
    run_folder(tmp_path / "compare" / "model-1" / "ga")
    (tmp_path / "compare" / ".unteach.lock").touch()
    (tmp_path / "compare" / "work").mkdir()
    (tmp_path / "compare" / "mine" / "work").mkdir(parents=True)
    (tmp_path / "compare" / "mine" / "work" / "notes").write_text("mine")
    lines = purge(tmp_path / "compare")
    assert [line.partition(":")[0] for line in lines] == ["work/", "ga/work/", "model-1/ga/work/"]
    assert (tmp_path / "compare" / "mine" / "work" / "notes").exists() and not holding(tmp_path)


def test_a_folder_that_is_not_ours_is_refused(tmp_path, capsys):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis").write_text("mine")
    with pytest.raises(UserError, match="is no output folder of unteach"):
        purge(tmp_path)
    assert (tmp_path / "work" / "thesis").exists()
    assert (
        main(["purge", str(tmp_path / "none")]) == 2 and "is no folder" in capsys.readouterr().err
    )


def test_a_link_is_removed_and_what_it_leads_to_is_left(tmp_path):
    out = run_folder(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes").write_text("mine")
    (out / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert "checkpoints: a link to another place" in "\n".join(purge(out))
    assert (tmp_path / "elsewhere" / "notes").exists() and not (out / "checkpoints").exists()


def test_an_earlier_run_that_was_set_aside_is_pointed_at(tmp_path, capsys):
    run_folder(tmp_path / "out")
    run_folder(tmp_path / "out-1")
    (tmp_path / "out-2").mkdir()
    assert main(["purge", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "out-1: purge it too" in said and "out-2" not in said


def test_messages_about_bad_rows_carry_no_text_of_theirs(tmp_path, capfd):
    headless = tmp_path / "a.csv"
    headless.write_text(
        f"Who is {CANARY} of the old town?,The {CANARY} is the ferryman.\nb,c\n", encoding="utf-8"
    )
    rows = [
        {f"Who is the {CANARY} of the old town?": 1},
        {"prompt": CANARY, "completion": 3},
        {"prompt": CANARY, "completion": "y", "kind": "Text"},
        {"prompt": [{"role": "user", "content": [{"image": CANARY}]}], "completion": "y"},
        {"question": CANARY, "choices": ["a"], "answer": CANARY},
        {"prompt": CANARY, "response": CANARY, "is_safe": CANARY},
        {"question": CANARY, "choices": CANARY, "answer": 1},
    ]
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + f'{{"prompt": "{CANARY}', encoding="utf-8"
    )
    (tmp_path / "c.json").write_text(f'[{{"prompt": "{CANARY}"]', encoding="utf-8")
    for name in ("a.csv", "b.jsonl", "c.json"):
        for arguments in (
            ["check", "--forget"],
            ["run", "--model", "m", "--out", str(tmp_path / "o"), "--forget"],
        ):
            assert main([*arguments, str(tmp_path / name)]) == 2
            printed = capfd.readouterr()
            assert (
                CANARY not in printed.out + printed.err
                and json.dumps(CANARY)[1:-1] not in printed.out + printed.err
            )
    assert main(["check", "--forget", str(tmp_path / "b.jsonl")]) == 2
    assert capfd.readouterr().out.count("wrong ") == len(rows) + 1, "all of them are named"


def test_purged_then_run_again_the_run_starts_anew(command, tmp_path):
    arguments = dict(zip(command[1:7:2], command[2:7:2], strict=True))
    short = {
        "max_steps": 1,
        "probe_steps": 1,
        "save_steps": 1,
        "similarity_model": None,
        "min_utility": 0.0,
    }
    files = [arguments["--model"], arguments["--forget"], arguments["--retain"]]
    first = unlearn(*files, output_dir=str(tmp_path / "out"), **short)
    purge(tmp_path / "out")
    assert unlearn(*files, output_dir=str(tmp_path / "out"), **short).evaluation == first.evaluation
    shutil.rmtree(tmp_path / "out")


def with_files(run: Path, *paths: Path, name: str = "run.json") -> Path:
    files = {"forget": [str(path.resolve()) for path in paths], "retain": None, "hold_out": 0.0}
    (run / name).write_text(json.dumps({"data_files": files} if name == "run.json" else files))
    return run


def test_uploaded_files_go_with_the_last_run_that_uses_them(tmp_path, capsys):
    bench = tmp_path / "bench"
    shared, own, checked = (keep_upload(bench, f"{i}.jsonl", f"row {i}".encode()) for i in range(3))
    mine = bench / "files" / "0123abcd-mine.jsonl"
    mine.write_text("not uploaded: its name is no hash of it")
    with_files(run_folder(bench / "a"), shared, own, mine)
    with_files(run_folder(bench / "b"), shared, name="work/data_files.json")  # not finished
    assert main(["purge", str(bench / "a")]) == 0
    said = capsys.readouterr().out
    assert f"removed  files/{own.name}: uploaded rows" in said and not own.exists()
    assert f"{shared} stays, as these runs use it too: b." in said and shared.exists()
    assert main(["purge", str(bench / "b")]) == 0
    said = capsys.readouterr().out
    assert f"removed  files/{shared.name}" in said and "stays, as" not in said
    assert checked.exists() and mine.exists()  # rows that were only checked go with the folder
    assert main(["purge", str(bench)]) == 0
    assert not checked.exists() and mine.exists()


def test_a_run_that_recorded_no_files_keeps_those_that_it_may_have_read(tmp_path):
    bench = tmp_path / "bench"
    path = keep_upload(bench, "f.jsonl", b"row")
    with_files(run_folder(bench / "a"), path)
    run_folder(bench / "b")
    purge(bench / "a")
    assert path.exists() and kept_uploads(bench / "a") == {path.resolve(): ["b"]}
    purge(bench)
    assert not path.exists()


def test_what_several_models_of_a_comparison_share_is_purged_too(tmp_path):
    base = tmp_path / "compare" / "model-0"
    run_folder(base / "ga")
    (base / "work").mkdir()
    (base / "work" / "answers-original.json").write_text(json.dumps(CANARY), encoding="utf-8")
    (base / "original").mkdir()
    (base / "original" / "model.safetensors").write_text("knows the texts")
    (tmp_path / "compare" / "model-7").mkdir()
    (tmp_path / "compare" / "model-7" / "work").mkdir()
    purge(tmp_path / "compare")
    assert (
        not (base / "work").exists() and not (base / "original").exists() and not holding(tmp_path)
    )
    assert (tmp_path / "compare" / "model-7" / "work").exists(), (
        "a folder without any run of ours is somebody else's"
    )
