"""Two processes do what one does: plain data parallelism, FSDP2 and, where DeepSpeed is installed,
ZeRO, through the launcher.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import byte_level_bpe, tiny_model

pytestmark = pytest.mark.timeout(900)
CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
ZERO = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed"),
    )
    for name in ("zero2_cpu.yaml", "zero3_cpu.yaml")
]


def start(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=ENVIRONMENT | more
    )


def launched(config: str) -> list[str]:
    """A launcher of two processes on CPUs."""
    return [
        *LAUNCH,
        "--config_file",
        str(CONFIGS / config),
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "unteach",
    ]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of four rows a step on a tiny model, all but `--out` and the rows a process."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model().save_pretrained(folder / "model")
    byte_level_bpe(chat=True).save_pretrained(folder / "model")
    for name in ("forget", "retain"):
        rows = [
            {
                "prompt": f"Who is number {i} of {name}?",
                "completion": f"The ferryman, {i} times {name}.",
            }
            for i in range(24)
        ]
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


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run in one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    done = start(
        [
            sys.executable,
            "-m",
            "unteach",
            *arguments,
            "per_device_train_batch_size=4",
            "--out",
            str(out),
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
    config: str, arguments: list[str], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = start(
        [*launched(config), *arguments, "per_device_train_batch_size=2", "--out", str(out)]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_steps(alone, out)
    torch.testing.assert_close(weights(out), weights(alone), rtol=0, atol=1e-5)
    assert json.loads((out / "eval.json").read_text()) == json.loads(
        (alone / "eval.json").read_text()
    )
    records = [json.loads((folder / "run.json").read_text()) for folder in (alone, out)]
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


@pytest.mark.parametrize(
    ("config", "robust"),
    [("data_parallel_cpu.yaml", "sam+relearn+rounding+perturb"), ("fsdp2_cpu.yaml", "sam+relearn")],
)
def test_wrappers_do_the_same_in_two_processes(
    config: str, robust: str, arguments: list[str], tmp_path: Path
) -> None:
    """With the accumulation of two micro-batches. relearn makes steps of the sign of a gradient,
    which rounding turns where it is about 0, so weights agree less closely.
    """
    own = ["--robust", robust, "sam_radius=0.05", "method=unlikelihood"]
    wrapped = [*arguments[:-1], *own, "gradient_accumulation_steps=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    here = [sys.executable, "-m", "unteach", *wrapped]
    for command, size, folder in ((here, 2, one), ([*launched(config), *wrapped], 1, two)):
        done = start([*command, f"per_device_train_batch_size={size}", "--out", str(folder)])
        assert done.returncode == 0, done.stdout + done.stderr
    for left, right in zip(lines(one), lines(two), strict=True):
        for name in set(left) & {"loss", "forget_loss", "forget_nll", "retain_kl", "retain_nll"}:
            assert right[name] == pytest.approx(left[name], abs=1e-4), (left["step"], name)
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-3)
    record = json.loads((two / "run.json").read_text())
    assert record["robust"] == robust and record["processes"] == 2


@pytest.mark.parametrize("config", ["data_parallel_cpu.yaml", "fsdp2_cpu.yaml"])
def test_two_processes_find_the_same_facts_and_targets_as_one(
    config: str, arguments: list[str], tmp_path: Path
) -> None:
    """The method `counterfactual`: information, made neighbours and target states, which the losses
    of the first step show. Later steps differ by more than rounding: on matrices that start at 0,
    Adam makes steps of the rounding of sums over processes.
    """
    own = ["method=counterfactual", "hold=4", "--paraphrases", "0"]
    counterfactual = [*arguments[:-1], *own]
    one, out = tmp_path / "one", tmp_path / "two"
    alone_ = [sys.executable, "-m", "unteach", *counterfactual]
    for command, size, folder in ((alone_, 4, one), ([*launched(config), *counterfactual], 2, out)):
        done = start([*command, f"per_device_train_batch_size={size}", "--out", str(folder)])
        assert done.returncode == 0, done.stdout + done.stderr
    first, other = (next(line for line in lines(folder) if "loss" in line) for folder in (one, out))
    for name in ("forget_loss", "retain_kl", "forget_nll", "retain_nll"):
        assert other[name] == pytest.approx(first[name], abs=1e-5), name
    facts = [(folder / "work" / "facts.json").read_text() for folder in (one, out)]
    assert json.loads(facts[0]) == json.loads(facts[1])
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, out)]
    assert [run["processes"] for run in records] == [1, 2]
    assert records[0]["method"] == "counterfactual" and records[0]["facts"] == records[1]["facts"]


KILL_BOTH = """
import os, signal, sys
from unteach.run import pipeline
from unteach.trainer import callback
from unteach.cli import main
after = callback.StepCallback.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 5 and os.environ.get("KILLED") == "training":
        os.kill(os.getpid(), signal.SIGKILL)
    return after(self, args, state, control, **kwargs)
callback.StepCallback.on_step_end = on_step_end
if os.environ.get("KILLED") == "scoring":
    pipeline.score = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


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
    one, out, script = tmp_path / "one", tmp_path / "out", tmp_path / "kill.py"
    script.write_text(KILL_BOTH, encoding="utf-8")
    done = start(
        [
            sys.executable,
            "-m",
            "unteach",
            *longer,
            "per_device_train_batch_size=4",
            "--out",
            str(one),
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    command = [
        *launched(config)[:-2],
        str(script),
        *longer,
        "per_device_train_batch_size=2",
        "--out",
        str(out),
    ]
    assert start(command, KILLED=during).returncode != 0
    first = (
        out
        / "checkpoints"
        / f"checkpoint-{3 if during == 'training' else 6}"
        / "trainer_state.json"
    )
    assert first.exists() and not (out / "run.json").exists()
    before = first.stat().st_mtime_ns
    done = start(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not first.exists() or first.stat().st_mtime_ns == before  # gone on from, not made again
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
        *launched("data_parallel_cpu.yaml")[:-2],
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
        *launched("fsdp2_cpu.yaml")[:-2],
        str(script),
        *arguments,
        "max_steps=1",
        "bf16=true",
        "per_device_train_batch_size=2",
    ]
    done = start([*command, "--out", str(tmp_path / "out")])
    said = {line.split(" ", 2)[2] for line in done.stdout.splitlines() if line.startswith("types")}
    assert said == {"torch.float32 torch.float64"}, done.stdout + done.stderr


def test_a_command_of_one_process_is_refused_in_several() -> None:
    environment = ENVIRONMENT | {"WORLD_SIZE": "2", "RANK": "1"}
    command = [sys.executable, "-m", "unteach", "attack", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (
        2,
        (
            "unteach (process 1): attack works in one process; start it without a launcher of"
            " several\n"
        ),
    )
