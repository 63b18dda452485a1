"""The page of two models: who may ask, what comes back, and what is said when something is wrong."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.chat import ChatServer, Side
from unteach.chat.server import model_side
from unteach.cli import main
from unteach.errors import UserError


def failing(row, tokens):
    if "long" in row.prompt:
        raise IndexError("position")
    return f"<b>{row.kind} {tokens}</b> {row.prompt}"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    sides = [Side("Before", "<a>", failing), Side("After", "b", lambda row, tokens: "")]
    with ChatServer(sides, max_new_tokens=7) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(
    server: ChatServer, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(
        method,
        path,
        data,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    reply = connection.getresponse()
    return reply.status, reply.read().decode(), dict(reply.getheaders())


def question(server: ChatServer, body: object, **headers: str) -> tuple[int, dict]:
    status, text, _ = ask(server, "POST", "/answer", body, **({"X_Token": server.token} | headers))
    return status, json.loads(text)


def test_both_models_are_asked_the_same_question(server):
    status, found = question(server, {"prompt": "Who?", "kind": "chat"})
    assert status == 200 and found["answers"] == ["<b>chat 7</b> Who?", ""]
    assert (
        question(server, {"prompt": "Once", "kind": "text"})[1]["answers"][0]
        == "<b>text 7</b> Once"
    )


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_escapes_names_fetches_nothing_and_runs_its_own_script_only(server):
    status, page, headers = ask(server, "GET", "/")
    assert status == 200 and "&lt;a&gt;" in page and "<a>" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page) and "http" not in page.replace(
        "http-equiv", ""
    )
    assert (
        f"script-src 'nonce-{server.nonce}'" in headers["Content-Security-Policy"]
        and "innerHTML" not in page
    )
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8377", ""])
def test_another_host_name_is_refused(server, host):
    assert ask(server, "GET", "/", Host=host)[0] == 403
    assert (
        ask(
            server,
            "POST",
            "/answer",
            {"prompt": "Who?", "kind": "chat"},
            Host=host,
            X_Token=server.token,
        )[0]
        == 403
    )


def test_without_the_page_s_token_nothing_is_asked(server):
    status, found = question(server, {"prompt": "Who?", "kind": "chat"}, X_Token="wrong")
    assert status == 403 and "load it again" in found["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[1]",
        b"null",
        {"prompt": " ", "kind": "chat"},
        {"prompt": 3, "kind": "chat"},
        {"prompt": "x", "kind": "y"},
        {},
        b"x" * 200_001,
    ],
)
def test_what_is_no_question_is_said_to_be_none(server, body):
    status, found = question(server, body)
    assert status == 400 and "question" in found["error"]


def test_a_model_that_cannot_answer_is_a_sentence(server):
    status, found = question(server, {"prompt": "long", "kind": "chat"})
    assert status == 500 and "too long" in found["error"]


def test_other_paths_are_not_there(server):
    assert ask(server, "GET", "/../secret")[0] == 404
    assert ask(server, "POST", "/", {})[0] == 404


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(server, capsys):
    assert main(["chat", "no-such-model", "no-such-model", "--port", str(server.server_port)]) == 2
    assert (
        f"port {server.server_port} is taken; choose another with --port" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="between 0 and 65535"):
        ChatServer([], port=70_000)


def test_a_real_model_answers_through_its_template(tmp_path):
    from unteach.data.rows import Row

    tiny_model().save_pretrained(tmp_path)
    byte_level_bpe(chat=True).save_pretrained(tmp_path)
    side = model_side("Before", str(tmp_path))
    assert isinstance(side.answer(Row("Who?", ""), 3), str)
