"""The server of `unteach chat`: one page, one question at a time, both models' answers.

It listens on 127.0.0.1. A request has to name this machine in its `Host` header (a foreign page
cannot reach it by a name that it points here) and to carry the token that the page was made with (a
foreign page cannot ask either). Answers travel as JSON and are put on the page as text.
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jinja2

from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.generation import answer
from unteach.models.precision import dtype_of

HOST = "127.0.0.1"
MOST_BYTES = 200_000
KINDS = ("chat", "text")


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Args:
        title (`str`): what the page calls it.
        name (`str`): folder, hub id or packaged name.
        answer (`Callable`): from a row (its prompt only) and a number of tokens to the greedy
            answer.
    """

    title: str
    name: str
    answer: Callable[[Row, int], str]


def model_side(
    title: str, name: str, *, trust_remote_code: bool = False, dtype: str = "float32"
) -> Side:
    """The side of a model that is loaded here; its questions go through its chat template, as in
    every other command.
    """
    from unteach import models

    tokenizer = models.load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = models.placed(
        models.load_model(name, trust_remote_code=trust_remote_code, dtype=dtype_of(dtype))
    )
    return Side(
        title, name, lambda row, tokens: answer(model, tokenizer, [row], max_new_tokens=tokens)[0]
    )


class ChatServer(ThreadingHTTPServer):
    """Serves the page at `/` and answers at `/answer`.

    Args:
        sides: the two models, the one before first.
        port (`int`): 0 takes a free one.
        max_new_tokens (`int`): most tokens of an answer.

    Raises:
        UserError: if the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, sides: Sequence[Side], *, port: int = 0, max_new_tokens: int = 120) -> None:
        self.sides, self.max_new_tokens = list(sides), max_new_tokens
        self.token = secrets.token_urlsafe(24)
        self.busy = threading.Lock()
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("unteach.chat"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
        )
        self.nonce = secrets.token_urlsafe(16)
        self.page = (
            environment.get_template("chat.html.j2")
            .render(sides=self.sides, token=self.token, nonce=self.nonce)
            .encode()
        )
        try:
            super().__init__((HOST, port), _Handler)
        except OverflowError:
            raise UserError(f"option --port is {port}, it must be between 0 and 65535") from None
        except OSError as error:
            reason = {
                errno.EADDRINUSE: "is taken; choose another with --port",
                errno.EACCES: "is not allowed; choose one above 1023",
            }
            raise UserError(
                f"port {port}"
                f" {reason.get(error.errno or 0, f'could not be opened ({error.strerror})')}"
            ) from None

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def answers(self, prompt: str, kind: str) -> list[str]:
        """Both models' greedy answers; one question at a time."""
        row = Row(prompt, "", "text" if kind == "text" else "chat", "asked in the browser")
        with self.busy:
            return [side.answer(row, self.max_new_tokens) for side in self.sides]


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        """The page."""
        if not self._is_for_here():
            return
        if self.path != "/":
            self._send(404, b"not here", "text/plain")
            return
        policy = (
            f"default-src 'none'; style-src 'nonce-{self.server.nonce}'; script-src"
            f" 'nonce-{self.server.nonce}'; connect-src 'self'; img-src data:; base-uri 'none';"
            " form-action 'none'; frame-ancestors 'none'"
        )
        self._send(
            200, self.server.page, "text/html; charset=utf-8", {"Content-Security-Policy": policy}
        )

    def do_POST(self) -> None:
        """A question: JSON with `prompt` and `kind` in, `answers` out."""
        if not self._is_for_here():
            return
        if self.path != "/answer":
            self._send(404, b"not here", "text/plain")
            return
        if not hmac.compare_digest(
            self.headers.get("X-Token", "").encode(), self.server.token.encode()
        ):
            self._fail(403, "This page is from an earlier start of the program: load it again.")
            return
        try:
            size = int(self.headers.get("Content-Length", ""))
            asked: Any = json.loads(self.rfile.read(size)) if 0 < size <= MOST_BYTES else None
            prompt, kind = asked["prompt"], asked["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self._fail(400, "That is no question.")
            return
        if not isinstance(prompt, str) or not prompt.strip() or kind not in KINDS:
            self._fail(400, "The question is empty.")
            return
        try:
            answers = self.server.answers(prompt, kind)
        except UserError as error:
            self._fail(400, str(error))
            return
        except (RuntimeError, IndexError, ValueError, MemoryError):
            self._fail(500, "A model could not answer that; it may be too long for it.")
            return
        self._send(200, json.dumps({"answers": answers}).encode(), "application/json")

    def _is_for_here(self) -> bool:
        """Refuses a request that names another host."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in (HOST, "localhost"):
            return True
        self._send(403, b"for another host", "text/plain")
        return False

    def _fail(self, status: int, sentence: str) -> None:
        self._send(status, json.dumps({"error": sentence}).encode(), "application/json")

    def _send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in {**fixed, "Referrer-Policy": "no-referrer", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked stays out of the log."""


def serve(
    before: str,
    after: str,
    *,
    port: int = 8377,
    max_new_tokens: int = 120,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    display: Any,
) -> None:
    """Loads both models and serves until it is interrupted.

    Args:
        before, after (`str`): folder, hub id or packaged name.
        port (`int`): 0 takes a free one.
        max_new_tokens (`int`)
        trust_remote_code (`bool`)
        dtype (`str`): what the models are held in, `float32` or `bfloat16`.
        display (`Display`)

    Raises:
        UserError: for an unknown model, and if the port is taken.
    """
    if max_new_tokens < 1:
        raise UserError(f"option --max-new-tokens is {max_new_tokens}, it must be positive")
    sides: list[Side] = []
    server = ChatServer(
        sides, port=port, max_new_tokens=max_new_tokens
    )  # a port that is taken is found before anything is loaded
    server.server_close()
    for title, name in (("Before", before), ("After", after)):
        with display.stage(f"Loading {name}"):
            sides.append(model_side(title, name, trust_remote_code=trust_remote_code, dtype=dtype))
    with ChatServer(sides, port=port, max_new_tokens=max_new_tokens) as server:
        display.say(f"Open {server.address} in a browser on this machine; Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            display.say("Ended.")
