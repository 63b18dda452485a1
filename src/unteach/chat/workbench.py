"""`unteach ui`: one local page to choose model and rows, check, train, watch, attack, compare and
download.

Checking, training and attacking are the same commands that a terminal takes, each in a process of
its own, so that the page shows nothing that the command line would not.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unteach.chat.server import (
    MAX_NEW_TOKENS,
    NOT_FOUND,
    Comparison,
    PageServer,
    Reply,
    load_chat_model,
)
from unteach.data.chat import settings_from
from unteach.errors import UserError
from unteach.files.folders import UPLOADS, keep_upload
from unteach.methods import METHODS
from unteach.run.folder import ORIGINAL, UNLEARNED, RunFolder

MOST_BYTES = 2**27
"""Longest file of rows that the page can send."""
FILES = {
    "report.html": "text/html; charset=utf-8",
    "README.md": "text/plain; charset=utf-8",
    **dict.fromkeys(("eval.json", "run.json", "attacks.json"), "application/json"),
    **dict.fromkeys(("metrics.jsonl", "config.yaml"), "text/plain; charset=utf-8"),
}
"""What the page gives of a run's folder, beside the model; with content types."""
CURVES = ("forget_rate", "utility", "neighbours", "readable")
ENDS = {0: "done", 2: "ended: see the last lines", -15: "stopped", 130: "stopped"}
"""Words for an exit code."""


class Job:
    """A command of `unteach` in a process of its own; `lines` are the last of its output."""

    def __init__(self, words: Sequence[str], run: str = "") -> None:
        self.words, self.run = list(words), run
        self.lines: deque[str] = deque(maxlen=400)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unteach", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
        self.process.wait()

    @property
    def running(self) -> bool:
        """Whether it has not ended, its last lines read."""
        return self._reader.is_alive()

    def stop(self) -> None:
        """Ends it; the same command resumes it. (A server that was started in the background
        ignores the signal of Ctrl-C, and so do its processes.)
        """
        if self.running:
            self.process.terminate()

    def state(self) -> dict[str, Any]:
        """For the page: what runs, how it ended, its output."""
        code = self.process.poll()
        state = "running" if self.running else ENDS.get(code or 0, f"failed (exit code {code})")
        command = shlex.join(["unteach", *self.words])
        return {
            "name": self.words[0],
            "command": command,
            "state": state,
            "running": self.running,
            "lines": list(self.lines),
        }


class Workbench(PageServer):
    """The page's server.

    Args:
        folder (`Path`): the runs are its folders.
    """

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.folder = folder
        self.job: Job | None = None
        self.pair: tuple[str, Comparison] | None = None
        self.lock = threading.Lock()
        routes = {
            "/state": self.state,
            "/file": self.keep_file,
            "/check": lambda body: self.start(["check", *_rows(body)]),
            "/run": self.train,
            "/attack": self.attack,
            "/stop": self.stop,
            "/answer": self.answer,
        }
        super().__init__(
            "ui.html.j2",
            routes,
            port=port,
            most_bytes=MOST_BYTES,
            folder=folder,
            methods=[name for name, method in METHODS.items() if not method.says_instead],
        )

    # --- commands

    def start(self, words: Sequence[str], run: str = "") -> dict[str, Any]:
        """Starts a command, one at a time; the models of the comparison leave memory."""
        with self.lock:
            self._require_idle()
            self.pair = None
            self.job = Job(words, run)
        return {}

    def _require_idle(self) -> None:
        if self.job and self.job.running:
            raise UserError(f"`unteach {self.job.words[0]}` is running: wait for it, or stop it.")

    def train(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Starts `unteach run` with the page's fields; the same again resumes a run."""
        if not body.get("model"):
            raise UserError("Name the model: a hub id, or a folder.")
        run = self._run_folder(str(body["run"]), finished=False)
        words = ["run", *_rows(body), f"--out={run}"]
        words += [f"--method={body['method']}"] if body.get("method") else []
        words += ["--lora"] if body.get("lora") else []
        return self.start([*words, *shlex.split(str(body.get("more", "")))], run.name)

    def attack(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Starts the quick attacks on a finished run."""
        run = self._run_folder(str(body["run"]))
        return self.start(["attack", str(run), "--level=quick"], run.name)

    def stop(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Interrupts the command that is running."""
        if self.job:
            self.job.stop()
        return {}

    def keep_file(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Stores a file that the page sends, readable by its owner only; returns its path."""
        data = base64.b64decode(str(body["data"]), validate=True)
        return {"path": str(keep_upload(self.folder, str(body["name"]), data))}

    # --- what the page shows

    def state(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The command, its curves, the finished runs, and the result of the chosen one."""
        found = [path.parent.name for path in sorted(self.folder.glob("*/eval.json"))]
        runs = [name for name in found if (self.folder / name / "run.json").is_file()]
        chosen = body.get("run")
        return {
            "job": self.job.state() if self.job else None,
            "curves": self._curves(self.job.run if self.job else ""),
            "runs": runs,
            "result": self._result(str(chosen)) if chosen in runs else None,
        }

    def _curves(self, run: str) -> list[dict[str, float]]:
        """Step and rates of each probe of a run that is trained, or was."""
        for place in ("checkpoints/metrics.jsonl", "metrics.jsonl"):
            path = self.folder / run / place
            if run and path.is_file():
                probes = []
                for line in path.read_text(encoding="utf-8").splitlines():
                    with contextlib.suppress(ValueError):  # the last one may be half written
                        record = json.loads(line)
                        if rates := record.get("probe"):
                            known = {name: rates[name] for name in CURVES if name in rates}
                            probes.append({"step": record["step"], **known})
                return probes
        return []

    def _result(self, name: str) -> dict[str, Any]:
        run = self.folder / name
        evaluation = json.loads((run / "eval.json").read_text(encoding="utf-8"))
        model = next((kind for kind in ("model", "adapter") if (run / kind).is_dir()), None)
        return {
            "verdict": evaluation.get("verdict") or "no verdict",
            "reasons": evaluation.get("reasons") or [],
            "files": [file for file in FILES if (run / file).is_file()],
            "model": model,
            "folder": str(run),
        }

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The original and the unlearned model's answers; both are loaded at the first prompt."""
        with self.lock:
            self._require_idle()
            run = self._run_folder(str(body["run"]))
            if self.pair is None or self.pair[0] != run.name:
                folder = RunFolder(run)
                record, titles = folder.record(), {ORIGINAL: "Original", UNLEARNED: "Unlearned"}
                chat = settings_from(record.get("chat"))
                more = False, record.get("dtype", "float32"), chat
                pair = [
                    load_chat_model(title, folder.model_path(role), *more)
                    for role, title in titles.items()
                ]
                self.pair = run.name, Comparison(pair, chat.max_new_tokens or MAX_NEW_TOKENS)
            return self.pair[1].answer(body)

    def _run_folder(self, name: str, *, finished: bool = True) -> Path:
        if not re.fullmatch(r"\w[\w.-]*", name) or name == UPLOADS:
            raise UserError(f"The run's name is {name!r}: take letters, digits, dots and dashes.")
        if finished and not (self.folder / name / "eval.json").is_file():
            raise UserError(f"There is no finished run {name!r} in {self.folder}.")
        return self.folder / name

    def download(self, path: str) -> Reply:
        """`/RUN/FILE` of `FILES`, or `/RUN/model.tar`: the model's or the adapter's folder."""
        run, _, name = path.strip("/").partition("/")
        with contextlib.suppress(UserError, OSError):
            folder = self._run_folder(run)
            if name in FILES:
                own = "sandbox allow-scripts allow-popups"  # the report has a policy of its own
                kind = {"Content-Type": FILES[name], "Content-Security-Policy": own}
                return 200, kind, (folder / name).read_bytes()
            model = folder / name.removesuffix(".tar")
            if name in ("model.tar", "adapter.tar") and model.is_dir():
                shown = f'attachment; filename="{run}-{name}"'
                kind = {"Content-Type": "application/x-tar", "Content-Disposition": shown}
                return 200, kind, _tar(model)
        return NOT_FOUND


def _rows(body: Mapping[str, Any]) -> list[str]:
    """The options of the page's fields that hold something."""
    if not body.get("forget"):
        raise UserError("Choose the file of the rows to forget.")
    names = ("model", "forget", "retain", "neighbours")
    return [f"--{name}={body[name]}" for name in names if body.get(name)]


def _tar(folder: Path) -> Iterator[bytes]:
    """A folder as a tar archive, in parts, without a copy on disk."""
    source, target = os.pipe()

    def fill() -> None:
        with (
            contextlib.suppress(BrokenPipeError),
            os.fdopen(target, "wb") as pipe,
            tarfile.open(mode="w|", fileobj=pipe) as archive,
        ):
            archive.add(folder, folder.name)

    threading.Thread(target=fill, daemon=True).start()
    with os.fdopen(source, "rb") as file:
        yield from iter(partial(file.read, 2**20), b"")


def serve_workbench(folder: str, *, port: int, display: Any) -> None:
    """Serves the page until it is interrupted; a command that is running is interrupted too."""
    place = Path(folder).expanduser()
    if place.exists() and not place.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the runs")
    with Workbench(place, port=port) as server:
        try:
            server.run(display)
        finally:
            server.stop({})
