"""Commands of unteach, each in a process forked from one that has imported everything: importing
takes longer than a run on a tiny model. As a program: `python forked_runs.py JOBS.json`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


@dataclass
class Job:
    """The words of a command, and code to run before it in its process."""

    words: Sequence[str]
    patch: str = ""


@dataclass
class Ended:
    """The exit code of each process, or minus its signal, and what all of them printed."""

    codes: list[int]
    said: str


def run_forked(
    jobs: Sequence[Job], folder: Path, launcher: Sequence[str] = (sys.executable,), count: int = 1
) -> list[Ended]:
    """Runs the jobs one after another.

    Args:
        jobs: the commands.
        folder (`Path`): an empty folder for what the processes leave.
        launcher: what starts `count` processes of a program.
    """
    plan, ports = folder / "jobs.json", free_ports(len(jobs))
    lines = [asdict(job) | {"port": port} for job, port in zip(jobs, ports, strict=True)]
    plan.write_text(json.dumps(lines), encoding="utf-8")
    command, options = [*launcher, __file__, str(plan)], {"capture_output": True, "text": True}
    done = subprocess.run(command, timeout=800, check=False, env=ENVIRONMENT, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [
        [json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in range(count)]
        for number in range(len(jobs))
    ]
    return [Ended([code for code, _ in of], "\n".join(text for _, text in of)) for of in found]


def free_ports(count: int) -> list[int]:
    """So many different ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def main() -> None:
    """Forks a process for each job of the plan and keeps its exit code and output."""
    import peft  # noqa: F401  all this for the processes that are forked below
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer  # noqa: F401

    from unteach.reports import figures  # noqa: F401
    from unteach.run import pipeline  # noqa: F401
    from unteach.trainer import trainer  # noqa: F401

    plan, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    for number, job in enumerate(json.loads(plan.read_text(encoding="utf-8"))):
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            os._exit(work(job, writing))
        os.close(writing)
        with open(reading, encoding="utf-8", errors="replace") as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        (plan.parent / f"{number}-{rank}.json").write_text(json.dumps([code, said]))


def work(job: dict[str, object], pipe: int) -> int:
    """One job, in its own process: a group of processes meets at the job's own port."""
    from unteach.cli import main as unteach

    for number in (1, 2):
        os.dup2(pipe, number)
    sys.stdout.reconfigure(line_buffering=True)
    if "WORLD_SIZE" in os.environ:
        os.environ |= {"MASTER_PORT": str(job["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    try:
        exec(str(job["patch"]), {})
        return unteach(job["words"])
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    main()
