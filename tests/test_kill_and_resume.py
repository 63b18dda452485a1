"""A run killed at three points and started again ends with bit-identical weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from forked_runs import Ended, Job, run_forked
from tiny_models import byte_level_bpe, tiny_model, write_rows

pytestmark = pytest.mark.timeout(900)
KILL = "import os, signal; kill = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
POINTS = {
    "before the first checkpoint": (
        """
from unteach.trainer import callback
after = callback.StepCallback.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    return kill() if state.global_step == 2 else after(self, args, state, control, **kwargs)
callback.StepCallback.on_step_end = on_step_end
"""
    ),
    "while a checkpoint is written": (
        """
from unteach.files import checkpoints
right = checkpoints.mark_complete
def mark_complete(folder, state):
    return kill() if str(folder).endswith("checkpoint-6") else right(folder, state)
checkpoints.mark_complete = mark_complete
"""
    ),
    "after training": (
        """
import unteach.run.pipeline
unteach.run.pipeline.score_models = kill
"""
    ),
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run on a tiny model, all but `--out`."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = byte_level_bpe(chat=True)
    model = tiny_model()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in ("forget", "retain"):
        write_rows(folder / f"{name}.jsonl", name, 16)
    files = f"--model {folder}/model --forget {folder}/forget.jsonl --retain {folder}/retain.jsonl"
    settings = "max_steps=8 save_steps=3 probe_steps=4 learning_rate=1e-3 min_utility=0 hold=99"
    return ["run", *files.split(), *settings.split(), "similarity_model=null"]


def weights(out: Path) -> dict[str, object]:
    return dict(load_file(out / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def runs(
    arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[Ended]]]:
    """Point to the folder of the run that was killed there and started again, and how both ended;
    `"never"` to that of an uninterrupted run.
    """
    folder = tmp_path_factory.mktemp("runs")
    places = {point: folder / str(number) for number, point in enumerate(["never", *POINTS])}
    jobs = [Job([*arguments, "--out", str(places["never"])])]
    for point, patch in POINTS.items():
        words = [*arguments, "--out", str(places[point])]
        jobs += [Job(words, KILL + patch), Job(words)]
    whole, *others = run_forked(jobs, folder)
    pairs = {point: others[2 * i : 2 * i + 2] for i, point in enumerate(POINTS)}
    return {point: (place, pairs.get(point, [whole])) for point, place in places.items()}


@pytest.mark.parametrize("point", list(POINTS))
def test_a_killed_run_ends_bit_identical(
    point: str, runs: dict[str, tuple[Path, list[Ended]]]
) -> None:
    uninterrupted, (whole,) = runs["never"]
    assert whole.codes == [0], whole.said
    out, (killed, again) = runs[point]
    assert killed.codes == [-signal.SIGKILL], killed.said
    assert again.codes == [0], again.said
    wanted, found = weights(uninterrupted), weights(out)
    assert wanted.keys() == found.keys()
    assert all(bool((wanted[name] == found[name]).all()) for name in wanted)
    evaluations = [json.loads((place / "eval.json").read_text()) for place in (out, uninterrupted)]
    assert evaluations[0] == evaluations[1]
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))


def test_the_short_benchmark_resumes_every_run_and_detects_every_damage(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"
    command = [sys.executable, str(script), "--short", "--json", str(tmp_path / "result.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "timeout": 800, "env": environment}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["ratio"] == 1 for row in rows), done.stdout
    assert sum(row["naive"] for row in rows if row["case"].startswith("killed")) == 3
