"""`unteach chat` and `unteach ui`: local pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unteach.cli.options import Command
from unteach.config.run import Precision, option, required, run_option

PORT = option(8377, "port of the page; 0 takes a free one")


@dataclass(frozen=True)
class ChatCommand:
    """Options of `unteach chat`."""

    before: str = required(
        "before", help="model before: hub id, local folder or packaged name", positional=True
    )
    after: str = required("after", help="model after", positional=True)
    port: int = PORT
    system: str | None = run_option(
        "system",
        help="system prompt of every question; default, as of the next three: that of"
        " the run of the model",
    )
    chat_template_kwargs: dict[str, Any] | None = run_option("chat_template_kwargs", default=None)
    chat_date: str | None = run_option(
        "chat_date", help="day, as YYYY-MM-DD, that a chat template is told; else today"
    )
    max_new_tokens: int | None = run_option(
        "max_new_tokens", help="most tokens of an answer; else 120"
    )
    dtype: Precision = run_option("dtype", help="precision of the models")
    trust_remote_code: bool = run_option("trust_remote_code")


def chat(given: dict[str, Any]) -> int:
    """Loads both models and serves one page on 127.0.0.1, which sends the same question to both.
    Nothing leaves this machine, and no question is stored. Questions are put as the run put them
    that made a model: with its system prompt, variables of the chat template and date.

      unteach chat runs/demo/original runs/demo/model
    """
    from unteach.chat.server import serve
    from unteach.progress import Display

    serve(**asdict(ChatCommand(**given)), display=Display())
    return 0


@dataclass(frozen=True)
class UiCommand:
    """Options of `unteach ui`."""

    folder: str = option("runs", "folder of the runs", positional=True)
    port: int = PORT


def ui(given: dict[str, Any]) -> int:
    """One page on 127.0.0.1 for a whole run: choose model and rows, check the rows, train and watch
    the curves, ask the model before and after, attack it, download it. Each step is a command of
    unteach, which the page shows. Nothing leaves this machine.

      unteach ui
      unteach ui results --port 0
    """
    from unteach.chat.workbench import serve_workbench
    from unteach.progress import Display

    serve_workbench(**asdict(UiCommand(**given)), display=Display())
    return 0


COMMANDS = {"chat": Command(chat, ChatCommand), "ui": Command(ui, UiCommand)}
