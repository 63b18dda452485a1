"""The server of `unteach chat`: one page that sends a prompt to two models.

It listens on 127.0.0.1 only. A request must name this machine in its `Host` header (against DNS
rebinding), and a prompt must carry the page's token (against requests from other sites).
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import jinja2

from unteach import models
from unteach.data.chat import ChatSettings, chosen_settings, with_chat_settings
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.generation import generate_outputs
from unteach.models.precision import dtype_of
from unteach.run.folder import recorded_chat

HOST = "127.0.0.1"
MAX_BYTES, MAX_NEW_TOKENS = 200_000, 120
KINDS = ("chat", "text")
PAGE = Path(__file__).parent / "templates" / "chat.html.j2"
PORT_ERRORS = {
    errno.EADDRINUSE: "is taken; choose another with --port",
    errno.EACCES: "is not allowed; choose one above 1023",
}
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
POLICY = (
    "default-src 'none'; style-src {nonce}; script-src {nonce}; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class ChatModel:
    """A model's title on the page, its name, and its greedy generation from a row (the prompt only)
    and a maximum number of new tokens.
    """

    title: str
    name: str
    generate: Callable[[Row, int], str]


def load_chat_model(
    title: str,
    name: str,
    trust_remote_code: bool,
    dtype: str,
    chat: ChatSettings | None = None,
) -> ChatModel:
    """Loads a model by folder, hub id or packaged name. Prompts go through its chat template."""
    tokenizer = models.load_tokenizer(name, trust_remote_code=trust_remote_code)
    with_chat_settings(tokenizer, chat or ChatSettings())
    options: Any = {"trust_remote_code": trust_remote_code, "dtype": dtype_of(dtype)}
    model = models.placed(models.load_model(name, **options))

    def generate(row: Row, tokens: int) -> str:
        return generate_outputs(model, tokenizer, [row], max_new_tokens=tokens)[0]

    return ChatModel(title, name, generate)


class ChatServer(ThreadingMixIn, WSGIServer):
    """Serves the page at `/` and generates at `/answer`, one prompt at a time; port 0 is any free.

    Raises:
        UserError: if the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(
        self, pair: Sequence[ChatModel], *, port: int = 0, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        self.pair, self.max_new_tokens = pair, max_new_tokens
        self.token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(16)
        self.generating = threading.Lock()
        template = jinja2.Template(PAGE.read_text("utf-8"), autoescape=True, trim_blocks=True)
        self.page = template.render(models=pair, token=self.token, nonce=self.nonce).encode()
        try:
            super().__init__((HOST, port), _Handler)
        except OverflowError:
            raise UserError(f"option --port is {port}, it must be between 0 and 65535") from None
        except OSError as error:
            reason = PORT_ERRORS.get(error.errno or 0, f"could not be opened ({error.strerror})")
            raise UserError(f"port {port} {reason}") from None
        self.set_app(self._application)

    def _application(self, request: dict[str, Any], start_response: Any) -> list[bytes]:
        status, kind, body = self._respond(request)
        headers = HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}
        headers["Content-Security-Policy"] = POLICY.format(nonce=f"'nonce-{self.nonce}'")
        start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
        return [body]

    def _respond(self, request: dict[str, Any]) -> tuple[int, str, bytes]:
        """Status, content type and body for a request's WSGI environment."""
        if request.get("HTTP_HOST", "").rpartition(":")[0] not in (HOST, "localhost"):
            return 403, "text/plain", b"wrong host"
        route = (request["REQUEST_METHOD"], request["PATH_INFO"])
        if route == ("GET", "/"):
            return 200, "text/html; charset=utf-8", self.page
        if route != ("POST", "/answer"):
            return 404, "text/plain", b"not found"
        status, field, value = self._answer(request)
        return status, "application/json", json.dumps({field: value}).encode()

    def _answer(self, request: dict[str, Any]) -> tuple[int, str, str | list[str]]:
        """JSON with `prompt` and `kind` in, `answers` or `error` out."""
        if not hmac.compare_digest(request.get("HTTP_X_TOKEN", "").encode(), self.token.encode()):
            return 403, "error", "The server was started again: reload this page."
        try:
            size = int(request.get("CONTENT_LENGTH") or 0)
            body = json.loads(request["wsgi.input"].read(size if 0 < size <= MAX_BYTES else 0))
            prompt, kind = body["prompt"], body["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return 400, "error", "The request is not JSON with a prompt and a kind."
        if not isinstance(prompt, str) or not prompt.strip() or kind not in KINDS:
            return 400, "error", "The prompt is empty, or its kind is unknown."
        row = Row(prompt, "", kind, "prompt of the chat page")
        try:
            with self.generating:
                answers = [model.generate(row, self.max_new_tokens) for model in self.pair]
        except UserError as error:
            return 400, "error", str(error)
        except (RuntimeError, IndexError, ValueError, MemoryError):
            return 500, "error", "Generation failed; the prompt may be too long for a model."
        return 200, "answers", answers


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Writes no log: prompts are private."""


def serve(
    before: str,
    after: str,
    *,
    port: int = 8377,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    display: Any,
    **chosen: Any,
) -> None:
    """Loads both models and serves until it is interrupted; `before` is the original model. Chat
    settings that are not in `chosen` are those that the model's run recorded, or the other's.
    """
    recorded = [recorded_chat(name) for name in (before, after)]
    chats = [
        chosen_settings(own or other or ChatSettings(), **chosen)
        for own, other in (recorded, recorded[::-1])
    ]
    pair: list[ChatModel] = []
    # a port that is taken must fail before minutes of loading
    ChatServer(pair, port=port).server_close()
    titles = ("Original model", "Unlearned model")
    for title, name, chat in zip(titles, (before, after), chats, strict=True):
        with display.stage(f"Loading {name}"):
            pair.append(load_chat_model(title, name, trust_remote_code, dtype, chat))
    if any(recorded):
        display.print("Chat settings that are not given are those of the models' runs.")
    limit = max(chat.max_new_tokens for chat in chats) or MAX_NEW_TOKENS
    with ChatServer(pair, port=port, max_new_tokens=limit) as server:
        display.print(f"Open http://{HOST}:{server.server_port}/ on this machine; Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            display.print("Ended.")
