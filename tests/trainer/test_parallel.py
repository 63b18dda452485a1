"""Two processes do what one does: plain data parallelism, FSDP2 and, where DeepSpeed is installed,
ZeRO, through the launcher.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forked_runs import ENVIRONMENT, Job, run_forked
from tiny_models import byte_level_bpe, tiny_model, write_rows
from unteach.cli import main

pytestmark = pytest.mark.timeout(900)
CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ZERO = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed"),
    )
    for name in ("zero2_cpu.yaml", "zero3_cpu.yaml")
]


def start(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=ENVIRONMENT
    )


def launched(config: str) -> list[str]:
    """A launcher of two processes on CPUs."""
    file = str(CONFIGS / config)
    return [*LAUNCH, "--config_file", file, "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of four rows a step on a tiny model, all but `--out` and the rows a process."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model().save_pretrained(folder / "model")
    byte_level_bpe(chat=True).save_pretrained(folder / "model")
    for name in ("forget", "retain"):
        write_rows(folder / f"{name}.jsonl", name, 24)
    files = [
        "--model",
        str(folder / "model"),
        "--forget",
        str(folder / "forget.jsonl"),
        "--retain",
        str(folder / "retain.jsonl"),
    ]
    settings = [
        "max_steps=6",
        "save_steps=3",
        "probe_steps=2",
        "learning_rate=3e-4",
        "similarity_model=null",
        "min_utility=0",
        "hold=2",
    ]
    return [
        "run",
        *files,
        *settings,
        "use_cpu=true",
        "target_rate=1.0",
        "retain_per_forget=1.5",
        "method=unlikelihood_mismatch",
    ]


WRAPPERS = {
    "data_parallel_cpu.yaml": "sam+relearn+rounding+perturb",
    "fsdp2_cpu.yaml": "sam+relearn",
}
"""Configuration to the wrappers that it is tested with, beside the method `counterfactual`."""


def variants(arguments: list[str], config: str) -> dict[str, list[str]]:
    """Name to the command, all but `--out` and the rows a process, whose numbers two processes
    share.
    """
    robust = ["--robust", WRAPPERS.get(config, ""), "sam_radius=0.05", "method=unlikelihood"]
    facts = ["method=counterfactual", "hold=4", "--paraphrases", "0"]
    found = {"plain": arguments}
    if config in WRAPPERS:
        found["wrappers"] = [*arguments[:-1], *robust, "gradient_accumulation_steps=2"]
        found["facts"] = [*arguments[:-1], *facts]
    return found


def sized(name: str, processes: int) -> str:
    """The option of rows a process, four rows a step."""
    return f"per_device_train_batch_size={(2 if name == 'wrappers' else 4) // processes}"


@pytest.fixture(scope="module")
def alone(
    arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """From a variant and a configuration to the folder of its run in this process."""
    folder, done = tmp_path_factory.mktemp("one"), {}

    def out(name: str, config: str = "") -> Path:
        words = variants(arguments, config)[name]
        if tuple(words) not in done:
            place = folder / str(len(done))
            assert main([*words, sized(name, 1), "--out", str(place)]) == 0
            done[tuple(words)] = place
        return done[tuple(words)]

    return out


@pytest.fixture(scope="module")
def together(
    arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """From a variant and a configuration to the folder of its run in two processes. One launch
    serves the variants of a configuration, and a killed run and its second start.
    """
    done: dict[str, Path] = {}

    def out(name: str, config: str) -> Path:
        if config not in done:
            folder = done[config] = tmp_path_factory.mktemp("two")
            runs = variants(arguments, config)
            jobs = [
                Job([*words, sized(name, 2), "--out", str(folder / name)])
                for name, words in runs.items()
            ]
            for ended in run_forked(jobs, folder, launched(config), 2):
                assert ended.codes == [0, 0], ended.said
        return done[config] / name

    return out


def lines(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    whole, adapter = (
        out / "model" / "model.safetensors",
        out / "adapter" / "adapter_model.safetensors",
    )
    return dict(load_file(whole if whole.exists() else adapter))


def assert_same_steps(one: Path, two: Path) -> None:
    wanted, found = lines(one), lines(two)
    assert [line["step"] for line in wanted] == [line["step"] for line in found]
    for left, right in zip(wanted, found, strict=True):
        assert left.get("probe") == right.get("probe")
        for name in set(left) & {
            "loss",
            "forget_loss",
            "forget_nll",
            "mismatch_nll",
            "retain_kl",
            "retain_nll",
            "retain_weight",
        }:
            assert right[name] == pytest.approx(left[name], abs=1e-6), (left["step"], name)
        assert right.get("tokens", 0) == pytest.approx(
            left.get("tokens", 0), rel=0.1
        )  # what prompts of a row share stands there once


@pytest.mark.parametrize("config", ["data_parallel_cpu.yaml", "fsdp2_cpu.yaml", *ZERO])
def test_two_processes_are_one(
    config: str, alone: Callable[..., Path], together: Callable[..., Path]
) -> None:
    one, out = alone("plain"), together("plain", config)
    assert_same_steps(one, out)
    torch.testing.assert_close(weights(out), weights(one), rtol=0, atol=1e-5)
    assert json.loads((out / "eval.json").read_text()) == json.loads(
        (one / "eval.json").read_text()
    )
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, out)]
    assert [run["processes"] for run in records] == [1, 2] and records[1][
        "sharded_weights"
    ] == config.startswith(("fsdp2", "zero3"))
    assert (
        len(
            {
                (run["stop_reason"], run["steps"], run["kept_step"], run["original_model_hash"])
                for run in records
            }
        )
        == 1
    )


@pytest.mark.parametrize("config", list(WRAPPERS))
def test_wrappers_do_the_same_in_two_processes(
    config: str, alone: Callable[..., Path], together: Callable[..., Path]
) -> None:
    """With the accumulation of two micro-batches. relearn makes steps of the sign of a gradient,
    which rounding turns where it is about 0, so weights agree less closely.
    """
    one, two = alone("wrappers", config), together("wrappers", config)
    for left, right in zip(lines(one), lines(two), strict=True):
        for name in set(left) & {"loss", "forget_loss", "forget_nll", "retain_kl", "retain_nll"}:
            assert right[name] == pytest.approx(left[name], abs=1e-4), (left["step"], name)
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-3)
    record = json.loads((two / "run.json").read_text())
    assert record["robust"] == WRAPPERS[config] and record["processes"] == 2


@pytest.mark.parametrize("config", list(WRAPPERS))
def test_two_processes_find_the_same_facts_and_targets_as_one(
    config: str, alone: Callable[..., Path], together: Callable[..., Path]
) -> None:
    """The method `counterfactual`: information, made neighbours and target states, which the losses
    of the first step show. Later steps differ by more than rounding: on matrices that start at 0,
    Adam makes steps of the rounding of sums over processes.
    """
    one, out = alone("facts", config), together("facts", config)
    first, other = (next(line for line in lines(folder) if "loss" in line) for folder in (one, out))
    for name in ("forget_loss", "retain_kl", "forget_nll", "retain_nll"):
        assert other[name] == pytest.approx(first[name], abs=1e-5), name
    facts = [(folder / "work" / "facts.json").read_text() for folder in (one, out)]
    assert json.loads(facts[0]) == json.loads(facts[1])
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, out)]
    assert [run["processes"] for run in records] == [1, 2]
    assert records[0]["method"] == "counterfactual" and records[0]["facts"] == records[1]["facts"]


KILL_BOTH = {
    "training": """
import os, signal
from unteach.trainer import callback
after = callback.StepCallback.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return after(self, args, state, control, **kwargs)
callback.StepCallback.on_step_end = on_step_end
""",
    "scoring": """
import os, signal
from unteach.run import pipeline
pipeline.score = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
""",
}
LIST = """
import json, os
from pathlib import Path
out = Path({out!r})
found = {{str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*")}}
Path(str(out) + "-" + os.environ["RANK"] + ".json").write_text(json.dumps(found))
"""
"""Keeps the files that a killed run has left, with their times."""


@pytest.mark.parametrize(
    ("config", "lora", "during"),
    [
        ("fsdp2_cpu.yaml", True, "training"),
        pytest.param("fsdp2_cpu.yaml", False, "training", marks=pytest.mark.slow),
        pytest.param("fsdp2_cpu.yaml", False, "scoring", marks=pytest.mark.slow),
        *(
            pytest.param(*zero.values, lora, "training", marks=[*zero.marks, pytest.mark.slow])
            for zero in ZERO
            for lora in (True, False)
        ),
        *(
            pytest.param(*zero.values, False, "scoring", marks=[*zero.marks, pytest.mark.slow])
            for zero in ZERO
        ),
    ],
)
def test_a_killed_run_of_sharded_weights_goes_on_to_where_one_process_ends(
    config: str, lora: bool, during: str, arguments: list[str], tmp_path: Path
) -> None:
    longer = [
        *arguments,
        "target_rate=0.0",
        "hold=9",
        "probe_steps=4",
        *(["--lora", "learning_rate=3e-3"] if lora else []),
    ]
    one, out = tmp_path / "one", tmp_path / "out"
    assert main([*longer, sized("plain", 1), "--out", str(one)]) == 0
    command = [*longer, sized("plain", 2), "--out", str(out)]
    jobs = [Job(command, KILL_BOTH[during]), Job(command, LIST.format(out=str(out)))]
    killed, again = run_forked(jobs, tmp_path, launched(config), 2)
    assert any(killed.codes) and again.codes == [0, 0], killed.said + again.said
    left = json.loads((tmp_path / "out-0.json").read_text())
    step = 3 if during == "training" else 6
    name = f"checkpoints/checkpoint-{step}/trainer_state.json"
    assert name in left and "run.json" not in left
    first = out / name
    assert not first.exists() or first.stat().st_mtime_ns == left[name]  # gone on from, not redone
    assert_same_steps(one, out)
    torch.testing.assert_close(weights(out), weights(one), rtol=0, atol=1e-5)
    assert json.loads((out / "eval.json").read_text()) == json.loads(
        (one / "eval.json").read_text()
    )
    assert json.loads((out / "run.json").read_text())["sharded_weights"] == (
        not config.startswith("zero2")
    )


LOSE_A_PROCESS = """
import os, signal, sys
from unteach.trainer import callback
from unteach.cli import main
after = callback.StepCallback.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return after(self, args, state, control, **kwargs)
callback.StepCallback.on_step_end = on_step_end
sys.exit(main(sys.argv[1:]))
"""


def test_a_lost_process_ends_the_run_with_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    script = tmp_path / "lose.py"
    script.write_text(LOSE_A_PROCESS, encoding="utf-8")
    command = [
        *launched("data_parallel_cpu.yaml"),
        str(script),
        *arguments,
        "per_device_train_batch_size=2",
    ]
    done = start([*command, "--out", str(tmp_path / "out")])
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("unteach")]
    assert said and "another process of this run is gone" in said[0], done.stderr


SAY_TYPES = """
import sys
from unteach.trainer import distributed
from unteach.trainer.step import StepMeans
from unteach.cli import main
shard = distributed.shard_on_cpus
def as_on_gpus(accelerator, args):
    found = shard(accelerator, args)
    accelerator.state.fsdp_plugin.set_mixed_precision("bf16")
    return found
distributed.shard_on_cpus = as_on_gpus
add = StepMeans.add
def spy(self, roles, *rest):
    for role, tokens in roles.items():
        print("types", role, tokens.statistics.logp.dtype, tokens.weights.dtype, flush=True)
    return add(self, roles, *rest)
StepMeans.add = spy
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_sharded_weights_in_mixed_precision_leave_the_statistics_in_float32(
    arguments: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "said.py"
    script.write_text(SAY_TYPES, encoding="utf-8")
    command = [
        *launched("fsdp2_cpu.yaml"),
        str(script),
        *arguments,
        "max_steps=1",
        "bf16=true",
        "per_device_train_batch_size=2",
    ]
    done = start([*command, "--out", str(tmp_path / "out")])
    said = {line.split(" ", 2)[2] for line in done.stdout.splitlines() if line.startswith("types")}
    assert said == {"torch.float32 torch.float64"}, done.stdout + done.stderr


def test_a_command_of_one_process_is_refused_in_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "attack works in one process; start it without a launcher of several"
    done = start([*launched("data_parallel_cpu.yaml"), "-m", "unteach", "attack", "nowhere"])
    said = {line for line in done.stderr.splitlines() if line.startswith(("unteach:", "unteach ("))}
    assert done.returncode != 0 and said, done.stderr  # the launcher ends the other process
    assert said <= {f"unteach: {sentence}", f"unteach (process 1): {sentence}"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["attack", "nowhere"]) == 2
    assert capsys.readouterr().err == f"unteach (process 1): {sentence}\n"
