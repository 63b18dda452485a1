"""Runs killed without warning and checkpoints damaged on disk: does the same command, started
again, end with the same weights?

A tiny random model on the CPU. Each killed run is killed once (SIGKILL): at a moment drawn from the
whole length of a run, or, every other time, a few milliseconds after a checkpoint's folder has
appeared without its completion marker. Then the same command is started again. Each damaged
checkpoint is the newest of a run that was killed after two of them: one file is truncated, or one
bit is flipped. `ours` counts the runs whose final weights and evaluation are those of an
uninterrupted run, byte for byte; `naive` counts the runs.

    python benchmarks/kill_and_resume.py [--short] [--json FILE]
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import record
import torch

from unteach.cli import main as unteach
from unteach.files.checkpoints import MARKER

STEPS, SAVE_STEPS = 12, 2
SETTINGS = [
    f"max_steps={STEPS}",
    f"save_steps={SAVE_STEPS}",
    "probe_steps=6",
    "learning_rate=1e-3",
    "min_utility=0",
    "hold=99",
]
WORDS = ["miller", "cat", "harbour", "ferryman", "bell", "moon", "flour", "bread"]


def make_inputs(folder: Path) -> list[str]:
    """A tiny model with its tokenizer, a forget and a retain file; returns the command, all but
    `--out`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|endoftext|>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=384,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    command = ["run", "--model", str(folder / "model"), *SETTINGS, "similarity_model=null"]
    for name in ("forget", "retain"):
        rows = [
            {"prompt": f"Who is {name} {i}?", "completion": f"The {WORDS[i % 8]}, {i} times."}
            for i in range(10)
        ]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        command += [f"--{name}", str(folder / f"{name}.jsonl")]
    return command


@contextlib.contextmanager
def to_file(log: Path) -> Iterator[None]:
    """Redirects standard output and error into a file, at the level of file descriptors."""
    kept, handle = [os.dup(1), os.dup(2)], os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(handle, number)
    try:
        yield
    finally:
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(handle)


def start(command: list[str], out: Path, log: Path) -> int:
    """Forks a process that runs the command; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with to_file(log):
            code = unteach([*command, "--out", str(out)])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Waits for a process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result(out: Path) -> tuple[bytes, bytes] | None:
    """The weights and the evaluation; equal for equal runs."""
    try:
        return (out / "model" / "model.safetensors").read_bytes(), (out / "eval.json").read_bytes()
    except OSError:
        return None


def kill_at(pid: int, moment: Callable[[], bool]) -> bool:
    """Kills a process once `moment()` holds; whether that was before its end."""
    while not moment():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, (
                "the run ended with an error before it was killed"
            )
            return False
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


def moment_of(kind: str, out: Path, draw: random.Random, seconds: float) -> Callable[[], bool]:
    """When to kill: at any time of a run of so many seconds, or while a checkpoint is written."""
    if kind == "any time":
        until = time.monotonic() + draw.uniform(0, seconds)
        return lambda: time.monotonic() >= until
    step, delay, seen = (
        draw.randrange(SAVE_STEPS, STEPS + 1, SAVE_STEPS),
        draw.uniform(0, 0.02),
        [0.0],
    )
    folder = out / "checkpoints" / f"checkpoint-{step}"

    def writing() -> bool:
        if not seen[0] and folder.exists() and not (folder / MARKER).exists():
            seen[0] = time.monotonic()
        return bool(seen[0]) and time.monotonic() >= seen[0] + delay

    return writing


def damage(folder: Path, draw: random.Random) -> str:
    """Truncates one file of a checkpoint or flips one of its bits; says what was done."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.stat().st_size))
    data = bytearray(path.read_bytes())
    if draw.random() < 0.4:
        length = draw.randrange(len(data))
        path.write_bytes(data[:length])
        return f"{path.name} truncated to {length} bytes"
    place = draw.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"{path.name}, bit {place} flipped"


def main() -> None:
    """Runs the benchmark."""
    options = record.options(__doc__)
    torch.set_num_threads(1)
    kills, damages = (3, 3) if options.short else (50, 20)
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        command = make_inputs(work)
        with to_file(work / "first.log"):
            # imports everything once, for all processes that are forked below
            unteach([*command, "--out", str(work / "first")])
        started = time.monotonic()
        whole = work / "whole"
        log = work / "whole.log"
        assert ended(start(command, whole, log)) == 0, log.read_text(encoding="utf-8")
        seconds, wanted = time.monotonic() - started, result(whole)
        assert wanted is not None

        same: dict[str, int] = {"any time": 0, "while a checkpoint is written": 0}
        tried: dict[str, int] = dict.fromkeys(same, 0)
        failed: list[str] = []
        while sum(tried.values()) < kills:
            number = sum(tried.values())
            kind = list(same)[number % 2]
            out, log = work / f"killed-{number}", work / f"killed-{number}.log"
            pid = start(command, out, log)
            if not kill_at(pid, moment_of(kind, out, draw, seconds)):
                shutil.rmtree(out)
                continue  # it had ended before the kill
            tried[kind] += 1
            if ended(start(command, out, log)) == 0 and result(out) == wanted:
                same[kind] += 1
            else:
                failed.append(f"kill {number} ({kind}):\n{log.read_text(encoding='utf-8')[-2000:]}")
            shutil.rmtree(out)
        for kind, count in same.items():
            rows.append(record.compared(f"killed {kind}", count, tried[kind], "runs"))

        template = work / "template"
        last = template / "checkpoints" / f"checkpoint-{STEPS - SAVE_STEPS}"
        pid = start(command, template, work / "template.log")
        assert kill_at(pid, lambda: (last / MARKER).exists())
        detected = fell_back = 0
        for number in range(damages):
            out, log = work / f"damaged-{number}", work / f"damaged-{number}.log"
            shutil.copytree(template, out)
            done = damage(out / "checkpoints" / last.name, draw)
            right = ended(start(command, out, log)) == 0 and result(out) == wanted
            renamed = (out / "checkpoints" / f"damaged-{last.name}").exists()
            noticed = renamed and "is damaged" in log.read_text(encoding="utf-8")
            steps = [
                json.loads(line)["step"]
                for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            detected += noticed
            fell_back += right and steps == sorted(steps)
            if not (noticed and right):
                failed.append(
                    f"damage {number} ({done}):\n{log.read_text(encoding='utf-8')[-2000:]}"
                )
            shutil.rmtree(out)
        rows.append(record.compared("damaged checkpoint detected", detected, damages, "runs"))
        rows.append(record.compared("resumed from the one before", fell_back, damages, "runs"))
    record.finish(rows, options.json)
    print(f"an uninterrupted run took {seconds:.1f} s")
    for text in failed:
        print(text)


if __name__ == "__main__":
    main()
