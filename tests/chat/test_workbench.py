"""The page of `unteach ui`: which commands it starts, what it shows of them, and what it gives."""

from __future__ import annotations

import base64
import http.client
import io
import json
import stat
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unteach.chat import workbench
from unteach.chat.server import ChatModel, Comparison
from unteach.chat.workbench import Job, Workbench

POPEN = workbench.subprocess.Popen
COMMAND = "import sys, time; print('heard', *sys.argv[1:], flush=True); time.sleep({seconds})"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    """A page whose commands print their words and take no time."""
    commands(monkeypatch)
    with Workbench(tmp_path / "runs") as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.stop({})
        made.shutdown()


def commands(monkeypatch: pytest.MonkeyPatch, seconds: float = 0) -> None:
    """Has a job run a program of a line in place of unteach."""
    line = COMMAND.format(seconds=seconds)

    def start(words: list[str], **options: Any) -> Any:
        assert words[:3] == [sys.executable, "-m", "unteach"]
        return POPEN([sys.executable, "-c", line, *words[3:]], **options)

    monkeypatch.setattr(workbench.subprocess, "Popen", start)


def send(bench: Workbench, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", bench.server_port, timeout=20)
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, headers={"X-Token": bench.token})
    reply = connection.getresponse()
    return reply.status, reply.read()


def post(bench: Workbench, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    status, answer = send(bench, "POST", path, body)
    return status, json.loads(answer)


def get(bench: Workbench, path: str) -> tuple[int, bytes]:
    return send(bench, "GET", f"{path}?token={bench.token}")


def ended(bench: Workbench) -> dict[str, Any]:
    """The command's state, once it has ended."""
    for _ in range(200):
        job = post(bench, "/state")[1]["job"]
        if not job["running"]:
            return dict(job)
        time.sleep(0.05)
    raise AssertionError("the command has not ended")


def finished(bench: Workbench, name: str = "mine") -> Path:
    """A folder as a run leaves it."""
    run = bench.folder / name
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    (run / "run.json").write_text("{}")
    (run / "report.html").write_text("<p>report</p>")
    evaluation = {"verdict": "forgotten", "reasons": ["No row is said."]}
    (run / "eval.json").write_text(json.dumps(evaluation))
    return run


def test_a_run_is_the_command_that_a_terminal_would_take(bench):
    given = {"model": "m", "forget": "a b.jsonl", "retain": "", "run": "mine", "lora": True}
    assert post(bench, "/run", **given, method="npo", more="max_steps=3 'x=a b'") == (200, {})
    job = ended(bench)
    out = bench.folder / "mine"
    words = f"run --model=m --forget=a b.jsonl --out={out} --method=npo --lora max_steps=3 x=a b"
    assert job["lines"] == [f"heard {words}"] and job["state"] == "done"
    assert job["command"].startswith("unteach run --model=m '--forget=a b.jsonl'")
    post(bench, "/check", forget="f.jsonl", model="")
    assert ended(bench)["lines"] == ["heard check --forget=f.jsonl"]


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/check", {"forget": ""}, "Choose the file of the rows to forget."),
        ("/run", {"forget": "f", "model": ""}, "Name the model"),
        ("/run", {"forget": "f", "model": "m", "run": "../up"}, "take letters, digits"),
        ("/run", {"forget": "f", "model": "m", "run": "files"}, "take letters, digits"),
        ("/run", {"forget": "f", "model": "m"}, "with the fields of the page"),
        ("/attack", {"run": "mine"}, "There is no finished run 'mine'"),
        ("/answer", {"run": "mine", "prompt": "x", "kind": "chat"}, "no finished run"),
        ("/file", {"name": "a", "data": "?"}, "with the fields of the page"),
    ],
)
def test_what_is_missing_is_one_sentence_and_starts_nothing(bench, path, body, sentence):
    status, found = post(bench, path, **body)
    assert status == 400 and sentence in found["error"] and bench.job is None


def test_one_command_at_a_time_which_can_be_stopped(bench, monkeypatch):
    commands(monkeypatch, seconds=30)
    finished(bench)
    assert post(bench, "/attack", run="mine")[0] == 200
    for path in ("/attack", "/answer"):
        status, found = post(bench, path, run="mine", prompt="Who?", kind="chat")
        assert status == 400 and "`unteach attack` is running" in found["error"]
    while not bench.job.lines:
        time.sleep(0.02)
    post(bench, "/stop")
    assert ended(bench)["state"] == "stopped"


def test_the_curves_are_those_of_the_run_that_is_trained(bench):
    place = bench.folder / "mine" / "checkpoints"
    place.mkdir(parents=True)
    probe = {"step": 10, "probe": {"forget_rate": 0.5, "utility": 1.0, "cut_off": 0.0}}
    lines = [json.dumps({"step": 1, "loss": 2.0}), json.dumps(probe), '{"step": 2']
    (place / "metrics.jsonl").write_text("\n".join(lines))
    bench.job = Job(["run"], "mine")
    state = post(bench, "/state")[1]
    assert state["curves"] == [{"step": 10, "forget_rate": 0.5, "utility": 1.0}]
    assert state["runs"] == [] and state["result"] is None


def test_a_finished_run_shows_its_verdict_and_gives_its_files(bench):
    finished(bench)
    result = post(bench, "/state", run="mine")[1]["result"]
    assert result["verdict"] == "forgotten" and result["reasons"] == ["No row is said."]
    assert result["files"] == ["report.html", "eval.json", "run.json"]
    assert get(bench, "/mine/report.html") == (200, b"<p>report</p>")
    status, archive = get(bench, "/mine/model.tar")
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert status == 200 and "model/config.json" in found.getnames()
    for path in ("/mine/generations.jsonl", "/mine/adapter.tar", "/../x/report.html", "/mine/../a"):
        assert get(bench, path)[0] == 404
    assert send(bench, "GET", "/mine/report.html")[0] == 403


def test_a_file_that_is_sent_is_readable_by_its_owner_alone(bench):
    data = base64.b64encode("ä".encode()).decode()
    status, found = post(bench, "/file", name="../../my rows.jsonl", data=data)
    path = Path(found["path"])
    assert status == 200 and path.parent == bench.folder / "files"
    assert path.name.endswith("-my_rows.jsonl") and path.read_text("utf-8") == "ä"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_both_models_of_the_chosen_run_answer(bench):
    finished(bench)
    pair = [ChatModel(title, "", lambda row, _: row.prompt) for title in ("Original", "Unlearned")]
    bench.pair = "mine", Comparison(pair)
    status, found = post(bench, "/answer", run="mine", prompt="Who?", kind="chat")
    assert status == 200 and found["answers"] == ["Who?", "Who?"]


def test_the_page_needs_nothing_from_elsewhere(bench):
    status, page = get(bench, "/")
    text = page.decode()
    assert status == 200 and "npo" in text and "innerHTML" not in text
    assert "//" not in text.replace("http://www.w3.org/2000/svg", "")
