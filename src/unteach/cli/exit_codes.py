"""How a command starts and ends: quiet libraries, exit codes, and one sentence for a failure."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from unteach.errors import UserError, is_out_of_memory, is_panic
from unteach.processes import LOST_PROCESS, is_lost_process

SEVERAL = ("run", "demo", "eval")
"""Commands that several processes may share."""
MEMORY_FULL = (
    "the memory is full; take a smaller per_device_train_batch_size or row_tokens, or --lora"
    " (unteach plan says what a run needs); the same command goes on from the last checkpoint"
)


def exit_code(command: Callable[..., int], *arguments: Any) -> int:
    """Runs a command: its own exit code; 2 where the user, the disk or another process is at fault,
    130 where it was interrupted.

    Args:
        command: what is to be done. An error that is nobody's fault but ours passes through.
        arguments: of the command.
    """
    try:
        return command(*arguments)
    except UserError as error:
        return _say(str(error))
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", 130)
    except OSError as error:
        return _say(f"{error.strerror or error} ({error.filename or 'no file'})")
    except Exception as error:
        if is_lost_process(error):
            return _say(LOST_PROCESS)
        if is_out_of_memory(error):
            return _say(f"{MEMORY_FULL} ({one_line(str(error))[:200]})")
        if not says_disk_full(error):
            raise
        return _say(
            "no space left on the disk; the last whole checkpoint is kept; free some and start"
            " again"
        )
    except BaseException as error:
        if not is_panic(error):
            raise
        return _say(
            f"a library gave up on a file of the model or the data ({one_line(str(error))[:200]})"
        )


def quiet_libraries() -> None:
    """Turns off the progress bars and warnings of transformers and of what it imports."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils"):  # torchao, where installed, names missing GPU kernels
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def check_launch(command: str) -> None:
    """Refuses a command that works in one process only; ends with a sentence where the launcher
    ends a process whose sister is gone.

    Raises:
        UserError: for such a command.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1:
        return
    if command not in SEVERAL:
        raise UserError(f"{command} works in one process; start it without a launcher of several")
    import signal

    def end(*_: Any) -> None:
        os.write(2, f"{_name()}: {LOST_PROCESS}\n".encode())
        sys.exit(2)

    signal.signal(signal.SIGTERM, end)


def _say(sentence: str, code: int = 2) -> int:
    print(f"{_name()}: {one_line(sentence)}", file=sys.stderr)
    return code


def _name() -> str:
    """What a message to the user begins with: the program, and which process it is where there are
    several.
    """
    rank = os.environ.get("RANK", "0")
    return "unteach" if rank == "0" else f"unteach (process {rank})"


def one_line(text: str) -> str:
    """The text without line breaks and half characters, and not longer than a screen."""
    text = " ".join(text.splitlines()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 1000 else f"{text[:1000]} ..."


def says_disk_full(error: Exception) -> bool:
    """Whether an error that is no `OSError` means a full disk: safetensors says so in words, torch
    finds its file shorter than written.
    """
    text = str(error)
    return any(
        words in text for words in ("No space left on device", "File too large", "unexpected pos")
    )
