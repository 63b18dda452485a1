"""The chat server: which requests it accepts, what it returns, and its error messages."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.chat import server as server_module
from unteach.chat.server import ChatModel, Comparison, PageServer, load_chat_model, serve
from unteach.cli import main
from unteach.errors import UserError
from unteach.progress import Display

DAY = "2025-12-24"


def failing(row, tokens):
    if "long" in row.prompt:
        raise IndexError("position")
    return f"<b>{row.kind} {tokens}</b> {row.prompt}"


@pytest.fixture
def server() -> Iterator[PageServer]:
    pair = [ChatModel("Original", "<a>", failing), ChatModel("Unlearned", "b", lambda *_: "")]
    routes = {"/answer": Comparison(pair, 7).answer}
    with PageServer("chat.html.j2", routes, models=pair) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def send(
    server: PageServer, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, headers=named)
    reply = connection.getresponse()
    return reply.status, reply.read().decode(), dict(reply.getheaders())


def generate(server: PageServer, body: object, **headers: str) -> tuple[int, dict]:
    status, text, _ = send(server, "POST", "/answer", body, **({"X_Token": server.token} | headers))
    return status, json.loads(text)


def test_both_models_get_the_same_prompt(server):
    status, found = generate(server, {"prompt": "Who?", "kind": "chat"})
    assert status == 200 and found["answers"] == ["<b>chat 7</b> Who?", ""]
    _, found = generate(server, {"prompt": "Once", "kind": "text"})
    assert found["answers"][0] == "<b>text 7</b> Once"


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_escapes_names_fetches_nothing_and_runs_its_own_script_only(server):
    status, page, headers = send(server, "GET", f"/?token={server.token}")
    assert status == 200 and "&lt;a&gt;" in page and "<a>" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "http" not in page.replace("http-equiv", "") and "innerHTML" not in page
    assert f"script-src 'nonce-{server.nonce}'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8377", ""])
def test_another_host_name_is_refused(server, host):
    assert send(server, "GET", f"/?token={server.token}", Host=host)[0] == 403
    body = {"prompt": "Who?", "kind": "chat"}
    assert send(server, "POST", "/answer", body, Host=host, X_Token=server.token)[0] == 403


def test_a_request_without_the_page_s_token_is_refused(server):
    status, found = generate(server, {"prompt": "Who?", "kind": "chat"}, X_Token="wrong")
    assert status == 403 and "open the address that it printed" in found["error"]
    assert [send(server, "GET", path)[0] for path in ("/", "/?token=", "/?token=x")] == [403] * 3


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
def test_a_request_without_a_prompt_is_refused(server, body):
    status, found = generate(server, body)
    assert status == 400 and ("prompt" in found["error"] or "not JSON" in found["error"])


def test_a_wrong_length_is_refused_at_once(server):
    headers = {"X_Token": server.token, "Content_Length": "-1"}
    assert send(server, "POST", "/answer", **headers)[0] == 400


def test_a_model_that_fails_gives_a_message(server):
    status, found = generate(server, {"prompt": "long", "kind": "chat"})
    assert status == 400 and "too long" in found["error"]


def test_other_paths_are_not_found(server):
    assert send(server, "GET", f"/../secret?token={server.token}")[0] == 404
    assert send(server, "POST", f"/?token={server.token}", {})[0] == 404


def test_a_taken_port_is_refused_before_a_model_is_loaded(server, capsys):
    assert main(["chat", "no-such-model", "no-such-model", "--port", str(server.server_port)]) == 2
    message = f"port {server.server_port} is taken; choose another with --port"
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="between 0 and 65535"):
        PageServer("chat.html.j2", {}, port=70_000, models=[])


def test_a_real_model_answers_through_its_template(tmp_path):
    from unteach.data.rows import Row

    tiny_model().save_pretrained(tmp_path)
    byte_level_bpe(chat=True).save_pretrained(tmp_path)
    model = load_chat_model("Original", str(tmp_path), False, "float32")
    assert isinstance(model.generate(Row("Who?", ""), 3), str)


@pytest.mark.parametrize(
    ("options", "asked"),
    [({}, [("Be kind.", {"x": 1}, "2026-01-31", 9)] * 2), ({"system": "", "chat_date": DAY}, None)],
)
def test_questions_are_put_as_the_model_s_run_put_them(options, asked, tmp_path, monkeypatch):
    """Of a run and of a ledger of requests; options go before them."""
    chat = {"system": "Be kind.", "template_kwargs": {"x": 1}, "date": "2026-01-31"}
    for name in ("base", "run/model", "ledger/adapter", "ledger/one/model"):
        (tmp_path / name).mkdir(parents=True)
    text = json.dumps({"chat": {**chat, "max_new_tokens": 9}})
    for place in ("run", "ledger/one"):
        (tmp_path / place / "run.json").write_text(text)
    (tmp_path / "ledger" / "requests.jsonl").write_text('{"run": "one"}\n{"event": "remove"}\n')
    for after in ("run/model", "ledger/adapter"):
        found: list[tuple] = []

        def load(title, name, trust, dtype, chat, found=found):
            found.append((chat.system, chat.template_kwargs, chat.date, chat.max_new_tokens))
            return ChatModel(title, name, failing)

        monkeypatch.setattr(server_module, "load_chat_model", load)
        monkeypatch.setattr(PageServer, "serve_forever", lambda _: None)
        names = [str(tmp_path / "base"), str(tmp_path / after)]
        serve(*names, port=0, display=Display(quiet=True), **options)
        assert found == (asked or [("", {"x": 1}, DAY, 9)] * 2)
