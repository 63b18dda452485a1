"""How a command starts and ends: quiet libraries, exit codes, and one sentence for a failure."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unteach.config.values import read_config
from unteach.errors import UserError, is_out_of_memory, is_panic
from unteach.processes import LOST_PROCESS, is_lost_process

SEVERAL = ("run", "demo", "eval")
"""Commands that several processes may share."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CACHES = ("UNTEACH_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR")
"""Environment variables that name folders of files that are not the run's."""
PART = re.compile(r"^\.(.+?)(?:\.old|\.\d+)?\.part$")
"""What an atomic write makes beside the file or folder whose name it holds."""
MEMORY_FULL = (
    "the memory is full; take a smaller per_device_train_batch_size or row_tokens, or --lora"
    " (unteach plan says what a run needs); the same command goes on from the last checkpoint"
)


def exit_code(command: Callable[..., int], *arguments: Any) -> int:
    """The exit code of `command(*arguments)`: its own; 2 for an error of the user, the machine or
    another process, in one sentence; 130 for an interruption. An error of the program is raised.
    """
    try:
        return command(*arguments)
    except UserError as error:
        return _say(str(error))
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", 130)
    except BrokenPipeError:
        return _say("the reader of the output has closed it")
    except Exception as error:
        if is_lost_process(error):
            return _say(LOST_PROCESS)
        if is_out_of_memory(error):
            return _say(f"{MEMORY_FULL} ({one_line(str(error))[:200]})")
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return _say(f"{error.strerror} ({error.filename or 'no file'})")
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


@contextlib.contextmanager
def named_files(options: Mapping[str, Any]) -> Iterator[None]:
    """Raises a `UserError` for a file error on a path that the user named: in the options, in the
    configuration file among them, in `CACHES`; or on a path above or below one of these.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, str | bytes) or error.errno in DISK_FULL:
            raise
        path = Path(os.fsdecode(error.filename)).absolute()
        path = Path(*(PART.sub(r"\1", part) for part in path.parts))
        named = [*_texts(options), *(os.environ[name] for name in CACHES if name in os.environ)]
        with contextlib.suppress(UserError):
            named += _texts(read_config(str(options.get("config") or "")))
        folders = [Path(text).absolute() for text in named if text.strip() and "\0" not in text]
        if any(path.is_relative_to(one) or one.is_relative_to(path) for one in folders):
            raise UserError(f"{error.strerror or error} ({error.filename!s})") from None
        raise


def _texts(value: Any) -> list[str]:
    """The strings in some options, words `key=value` and lists separated by commas taken apart."""
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return [
            part for word in (text, text.partition("=")[2]) for part in (word, *word.split(","))
        ]
    inner = value.values() if isinstance(value, Mapping) else value
    parts = inner if isinstance(inner, list | tuple) or isinstance(value, Mapping) else ()
    return [text for part in parts for text in _texts(part)]


def quiet_libraries() -> None:
    """Turns off the progress bars and warnings of transformers and of what it imports."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils"):  # torchao, where installed, names missing GPU kernels
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def check_launch(command: str) -> None:
    """Raises `UserError` for a command that runs in one process only; installs a handler that says
    so when the launcher terminates this process because another has failed.
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
    """The prefix of messages: the program, and the process's rank where there are several."""
    rank = os.environ.get("RANK", "0")
    return "unteach" if rank == "0" else f"unteach (process {rank})"


def one_line(text: str) -> str:
    """The text in one line, at most 1,000 characters, without lone surrogates."""
    text = " ".join(text.splitlines()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 1000 else f"{text[:1000]} ..."


def says_disk_full(error: Exception) -> bool:
    """Whether another error means a full disk: safetensors and torch raise errors of their own."""
    text = str(error)
    return any(
        words in text for words in ("No space left on device", "File too large", "unexpected pos")
    )
