"""Local pages: a server for one page, and `unteach chat`, which sends a prompt to two models.

It listens on 127.0.0.1 only. A request must name this machine in its `Host` header (against DNS
rebinding) and carry the token of the printed address (against other sites and other users).
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs
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
MAX_NEW_TOKENS = 120
KINDS = ("chat", "text")
TEMPLATES = Path(__file__).parent / "templates"
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
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Route = Callable[[dict[str, Any]], Mapping[str, Any]]
Reply = tuple[int, dict[str, str], bytes | Iterable[bytes]]
"""Status, headers and body."""
NOT_FOUND: Reply = (404, {"Content-Type": "text/plain"}, b"not found")


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


class PageServer(ThreadingMixIn, WSGIServer):
    """Serves a page of `templates/` at `/`, and JSON at the POST routes; port 0 is any free one.

    A route gets the body, a dict, and returns the fields of its answer; a `UserError` is the
    answer's `error`.

    Args:
        template (`str`): name of the page's file; it gets the values, `token` and `nonce`.
        routes: path to function.
        most_bytes (`int`): longest body.

    Raises:
        UserError: if the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(
        self,
        template: str,
        routes: Mapping[str, Route],
        *,
        port: int = 0,
        most_bytes: int = 200_000,
        **values: Any,
    ) -> None:
        self.routes, self.most_bytes = routes, most_bytes
        self.token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(16)
        files = jinja2.FileSystemLoader(TEMPLATES)
        page = jinja2.Environment(loader=files, autoescape=True, trim_blocks=True)
        values |= {"token": self.token, "nonce": self.nonce}
        self.page = page.get_template(template).render(values).encode()
        try:
            super().__init__((HOST, port), _Handler)
        except OverflowError:
            raise UserError(f"option --port is {port}, it must be between 0 and 65535") from None
        except OSError as error:
            reason = PORT_ERRORS.get(error.errno or 0, f"could not be opened ({error.strerror})")
            raise UserError(f"port {port} {reason}") from None
        self.set_app(self._application)

    @property
    def address(self) -> str:
        """The page's address, with the token."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def run(self, display: Any) -> None:
        """Serves until it is interrupted."""
        display.print(f"Open {self.address} on this machine; Ctrl-C ends it.")
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            display.print("Ended.")

    def _application(self, request: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Status, headers and body for a request's WSGI environment."""
        status, kind, body = self._respond(request)
        headers = HEADERS | {"Content-Security-Policy": POLICY.format(nonce=self.nonce)} | kind
        start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
        return [body] if isinstance(body, bytes) else body

    def _respond(self, request: dict[str, Any]) -> Reply:
        verb, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        if request.get("HTTP_HOST", "").rpartition(":")[0] not in (HOST, "localhost"):
            return 403, {"Content-Type": "text/plain"}, b"wrong host"
        if verb == "POST" and path in self.routes:
            status, found = self._answer(self.routes[path], request)
            return status, {"Content-Type": "application/json"}, json.dumps(found).encode()
        given = parse_qs(request.get("QUERY_STRING", "")).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 403, {"Content-Type": "text/plain"}, b"open the address that unteach printed"
        if (verb, path) == ("GET", "/"):
            return 200, {"Content-Type": "text/html; charset=utf-8"}, self.page
        return self.download(path) if verb == "GET" else NOT_FOUND

    def download(self, path: str) -> Reply:
        """What another address gives; a server without files has none."""
        return NOT_FOUND

    def _answer(self, route: Route, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not hmac.compare_digest(request.get("HTTP_X_TOKEN", "").encode(), self.token.encode()):
            return 403, {"error": "The server was started again: open the address that it printed."}
        try:
            size = int(request.get("CONTENT_LENGTH") or 0)
            body = json.loads(
                request["wsgi.input"].read(size if 0 < size <= self.most_bytes else 0)
            )
            return 200, dict(route(dict(body)))
        except UserError as error:
            return 400, {"error": str(error)}
        except (ValueError, KeyError, TypeError, RecursionError):
            return 400, {"error": "The request is not JSON with the fields of the page."}


class Comparison:
    """Answers of models to the same prompt, one prompt at a time."""

    def __init__(self, models: Sequence[ChatModel], max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.models, self.max_new_tokens = models, max_new_tokens
        self.generating = threading.Lock()

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`answers`, one a model, to the body's `prompt` of a `kind`."""
        prompt, kind = body["prompt"], body["kind"]
        if not isinstance(prompt, str) or not prompt.strip() or kind not in KINDS:
            raise UserError("The prompt is empty, or its kind is unknown.")
        row = Row(prompt, "", kind, "prompt of the chat page")
        try:
            with self.generating:
                found = [model.generate(row, self.max_new_tokens) for model in self.models]
        except UserError:
            raise
        except (RuntimeError, IndexError, ValueError, MemoryError):
            raise UserError("Generation failed; the prompt may be too long for a model.") from None
        return {"answers": found}


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
    PageServer("chat.html.j2", {}, port=port, models=pair).server_close()
    titles = ("Original model", "Unlearned model")
    for title, name, chat in zip(titles, (before, after), chats, strict=True):
        with display.stage(f"Loading {name}"):
            pair.append(load_chat_model(title, name, trust_remote_code, dtype, chat))
    if any(recorded):
        display.print("Chat settings that are not given are those of the models' runs.")
    limit = max(chat.max_new_tokens for chat in chats) or MAX_NEW_TOKENS
    routes = {"/answer": Comparison(pair, limit).answer}
    with PageServer("chat.html.j2", routes, port=port, models=pair) as server:
        server.run(display)
