"""`unteach chat`: two models side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unteach.cli.options import Command
from unteach.config.run import Precision, option, required, run_option


@dataclass(frozen=True)
class ChatCommand:
    """Options of `unteach chat`."""

    before: str = required(
        "before", help="model before: hub id, local folder or packaged name", positional=True
    )
    after: str = required("after", help="model after", positional=True)
    port: int = option(8377, "port of the page; 0 takes a free one")
    max_new_tokens: int = option(120, "most tokens of an answer")
    system: str | None = run_option("system", help="system prompt of every question")
    chat_template_kwargs: dict[str, Any] | None = run_option("chat_template_kwargs", default=None)
    dtype: Precision = run_option("dtype", help="precision of the models")
    trust_remote_code: bool = run_option("trust_remote_code")


def chat(given: dict[str, Any]) -> int:
    """Loads both models and serves one page on 127.0.0.1, which sends the same question to both.
    Nothing leaves this machine, and no question is stored.

      unteach chat runs/demo/original runs/demo/model
    """
    from unteach.chat.server import serve
    from unteach.progress import Display

    serve(**asdict(ChatCommand(**given)), display=Display())
    return 0


COMMANDS = {"chat": Command(chat, ChatCommand)}
