"""`broker callbacks`, `broker webhooks` and `broker costs`: with a running broker, and without one."""

from __future__ import annotations

import json
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from broker.cli.console import format_json
from tests.processes.test_cli import KEY
from tests.support.file_modes import accessible_to_others, modes_below
from tests.support.shell import Shell, serving

EVENT = f"evt_{'1' * 32}"
DELIVERY: dict[str, Any] = {
    "id": EVENT,
    "taskId": f"task_{'2' * 43}",
    "owner": "house:local",
    "withheld": False,
    "type": "task.completed",
    "url": "https://receiver.example/hook",
    "outcome": "failed",
    "attempts": 8,
    "lastStatus": 500,
    "reason": "every try failed",
    "createdAt": "2026-08-11T02:34:42.000Z",
    "nextAt": None,
    "deliveredAt": None,
}
ATTEMPTS = [
    {"number": 1, "at": "2026-08-11T02:34:43.000Z", "status": 500, "error": None, "milliseconds": 12},
    {"number": 2, "at": "2026-08-11T02:34:48.000Z", "status": None, "error": "too slow", "milliseconds": 15000},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Yield a shell next to a running broker with one image and two rejected callbacks."""
    folder = tmp_path_factory.mktemp("served")
    with serving(Shell(folder, {"BROKER_API_KEYS": KEY, "BROKER_LOG_DIR": "logs"}), "serve", "--port", "0") as (
        _,
        address,
    ):
        shell = Shell(folder, {"BROKER_API_KEYS": KEY, "BROKER_PORT": address.rpartition(":")[2]})
        assert shell.run("generate", "a red fox", "-o", "fox.png").code == 0
        send_callback(shell, "?task=task_x&attempt=1&token=wrong", b'{"a": 1}')
        send_callback(shell, "", b"\x1b]0;owned\x07 {")
        yield shell


def send_callback(shell: Shell, query: str, body: bytes, **headers: str) -> None:
    """Send a callback and ignore the response."""
    url = f"http://127.0.0.1:{shell.settings['BROKER_PORT']}/api/webhook/nano-banana{query}"
    try:
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()


def list_callbacks(shell: Shell, *args: str) -> list[dict[str, Any]]:
    ended = shell.run("callbacks", *args, "--json")
    assert ended.code == 0, ended.err
    data: list[dict[str, Any]] = json.loads(ended.out)["data"]
    return data


def first_callback_id(shell: Shell, verification: str) -> str:
    """Return the id of the first callback with this verification result."""
    callback_id: str = list_callbacks(shell, "--verification", verification)[-1]["id"]
    return callback_id


# -- callbacks


def test_callbacks_are_listed(served: Shell) -> None:
    ended = served.run("callbacks")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert re.fullmatch(
        r"callback_[0-9a-f]{24}  \S+Z  malformed 400 +no task  the body is not readable JSON", lines[-3]
    )
    assert re.fullmatch(r"callback_[0-9a-f]{24}  \S+Z  reject    401 +no task  its token is wrong", lines[-2])
    accepted = r"callback_[0-9a-f]{24}  \S+Z  accept    200  lag [0-9.]+ s +task_[0-9a-f]{43}/1  its token .*"
    assert re.fullmatch(accepted, lines[-1])


def test_callbacks_are_listed_as_json(served: Shell) -> None:
    (accepted,) = list_callbacks(served, "--verification", "accept", "--limit", "1")
    assert list_callbacks(served, "--task", accepted["taskId"])[-1]["id"] == first_callback_id(served, "accept")
    assert list_callbacks(served, "--task", "task_unknown") == []
    assert "No callbacks." in served.run("callbacks", "--task", "task_unknown").err


def test_callback_is_shown_with_its_body(served: Shell) -> None:
    callback_id = first_callback_id(served, "accept")
    ended = served.run("callbacks", "show", callback_id)
    assert ended.code == 0, ended.err
    facts = dict(line.split(None, 1) for line in ended.out.splitlines() if len(line.split(None, 1)) == 2)
    assert facts["callback"] == callback_id
    assert facts["result"] == "accept (200): its token or signature is valid"
    assert '"state": "success"' in ended.out
    assert "token=[hidden]" in ended.out
    shown = json.loads(served.run("callbacks", "show", callback_id, "--json").out)["data"]
    assert shown["body"] in ended.out


def test_remote_text_cannot_control_the_terminal(served: Shell) -> None:
    callback_id = first_callback_id(served, "malformed")
    assert "]0;owned" in served.run("callbacks", "show", callback_id).out
    for args in (
        ("show", callback_id),
        ("replay", callback_id),
        ("export", callback_id),
        ("show", callback_id, "--json"),
    ):
        assert "\x1b" not in served.run("callbacks", *args).out


def test_exported_json_has_no_control_characters() -> None:
    document = {"body": "a\x9b2Jb\x7f \u202e🍌", "n": [1]}
    text = format_json(document)
    assert json.loads(text) == document
    assert not any(c in text for c in "\x9b\x7f\u202e")
    assert "🍌" in text


def test_accepted_callback_is_replayed(served: Shell) -> None:
    callback_id = first_callback_id(served, "accept")
    dry = served.run("callbacks", "replay", callback_id, "--dry-run")
    assert (dry.code, "Nothing was changed." in dry.out) == (0, True)
    assert "report     the job succeeded: 1 result, 4 credits" in dry.out
    ended = served.run("callbacks", "replay", callback_id)
    assert ended.code == 0, ended.err
    assert "effect     nothing: the task is succeeded already" in ended.out
    replay_id = re.search(r"Replayed as (callback_[0-9a-f]{24})\.", ended.out)
    assert replay_id is not None
    assert f"(replay of {callback_id})" in served.run("callbacks").out
    assert f"replay of  {callback_id}" in served.run("callbacks", "show", replay_id[1]).out


def test_rejected_callback_is_only_explained(served: Shell) -> None:
    before = len(list_callbacks(served))
    ended = served.run("callbacks", "replay", first_callback_id(served, "reject"))
    assert (ended.code, "It was not replayed." in ended.out) == (1, True)
    assert "result     reject (401): its token is wrong" in ended.out
    assert len(list_callbacks(served)) == before


def test_callback_is_exported_as_a_fixture(served: Shell) -> None:
    callback_id = first_callback_id(served, "accept")
    printed = served.run("callbacks", "export", callback_id)
    saved = served.run("callbacks", "export", callback_id, "-o", "fixture.json")
    assert (saved.code, saved.out) == (0, "")
    assert "review it before you share it" in saved.err
    text = (served.folder / "fixture.json").read_text("utf-8")
    assert text == printed.out
    assert json.loads(text)["expected"]["verification"] == "accept"
    nowhere = served.run("callbacks", "export", callback_id, "-o", "nowhere/fixture.json")
    assert (nowhere.code, "nowhere/fixture.json: No such file" in nowhere.err) == (1, True)


def test_files_of_a_running_broker_are_accessible_to_its_user_only(served: Shell) -> None:
    """Database, WAL, log, images and secret, and the files that commands save."""
    callback_id = first_callback_id(served, "accept")
    assert served.run("callbacks", "export", callback_id, "-o", "callback.json").code == 0
    assert accessible_to_others(served.folder) == {}
    made = {path.rpartition("/")[2] for path in modes_below(served.folder)}
    assert {"broker.db", "broker.db-wal", "broker.db-shm", "secret.key", "app.log", "fox.png", "callback.json"} <= made
    assert list(served.folder.glob("data/blobs/*/*/task_*"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("show", "../../task"), "There is nothing at this address"),
        (("replay", f"callback_{'0' * 24}"), "There is no callback with this id"),
        (("export", "callback_0"), "There is no callback with this id"),
        (("--verification", "fine"), "verification must be one of accept, recheck"),
        (("show", EVENT), "There is no callback with this id"),
    ],
    ids=str,
)
def test_errors_are_one_sentence(served: Shell, args: tuple[str, ...], words: str) -> None:
    ended = served.run("callbacks", *args)
    assert (ended.code, ended.out) == (1, "")
    assert words in ended.err
    assert "Traceback" not in ended.err


def test_callbacks_need_the_key_of_the_broker(served: Shell) -> None:
    ended = served.run("callbacks", BROKER_API_KEYS="another-key")
    assert (ended.code, ended.out) == (1, "")
    assert "another-key" not in ended.err


def test_missing_callbacks_are_counted(served: Shell) -> None:
    """A minute after the end of the attempt, since one may arrive until then."""
    try:
        _set_source(served, "check")
        assert "1 callback did not arrive in the last 24 hours." in served.run("callbacks").out
    finally:
        _set_source(served, "callback")
    assert "did not arrive" not in served.run("callbacks").out


def _set_source(shell: Shell, learned_by: str) -> None:
    """Mark every attempt as ended a while ago and reported in this way."""
    with closing(sqlite3.connect(shell.folder / "data" / "broker.db", timeout=10)) as database, database:
        database.execute("UPDATE attempts SET learned_by = ?, number = 7, ended_at = sent_at - 100", [learned_by])


def test_watched_inbox_prints_new_callbacks(served: Shell) -> None:
    process = served.start("callbacks", "--watch", "--limit", "1")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        send_callback(served, "?task=task_watched&attempt=1&token=wrong", b"{}")
        assert "its token is wrong" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


# -- without a running broker


def test_callbacks_are_read_from_the_database(served: Shell) -> None:
    """The same API inside the process, also with a key configured."""
    offline = Shell(served.folder, {**served.settings, "BROKER_PORT": "9"})
    callback_id = first_callback_id(served, "accept")
    assert offline.run("callbacks", "show", callback_id).out == served.run("callbacks", "show", callback_id).out
    assert "Nothing was changed." in offline.run("callbacks", "replay", callback_id, "--dry-run").out
    ended = offline.run("callbacks", "replay", callback_id)
    assert (ended.code, "the next worker processes it" in ended.err) == (0, True)
    missing = offline.run("callbacks", "show", f"callback_{'0' * 24}")
    assert (missing.code, "There is no callback with this id" in missing.err) == (1, True)


def test_folder_without_a_database_is_an_error(tmp_path: Any) -> None:
    ended = Shell(tmp_path, {"BROKER_PORT": "9"}).run("callbacks")
    assert (ended.code, "right folder" in ended.err) == (1, True)
    assert list(tmp_path.iterdir()) == []


# -- webhooks


class FakeBroker(BaseHTTPRequestHandler):
    """HTTP server that answers like a broker with one delivery."""

    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        whole = {**DELIVERY, "attemptLog": ATTEMPTS, "body": {"type": "task.completed", "text": "\x9b2J"}}
        documents: dict[str, Any] = {
            "/health": {"status": "healthy"},
            "/api/me": {"success": True, "data": {}},
            "/api/deliveries": {"success": True, "data": [DELIVERY], "nextCursor": None},
            f"/api/deliveries/{EVENT}": {"success": True, "data": whole},
        }
        self._answer(200, documents[self.path.split("?")[0]])

    def do_POST(self) -> None:
        self._answer(202, {"success": True, "data": DELIVERY})

    def _answer(self, status: int, document: Any) -> None:
        self.requests.append(f"{self.command} {self.path}")
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_broker() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeBroker) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_webhooks_are_listed_shown_and_replayed(tmp_path: Any) -> None:
    FakeBroker.requests.clear()
    with fake_broker() as port:
        shell = Shell(tmp_path, {"BROKER_PORT": str(port)})
        sent = shell.run("webhooks", "--task", DELIVERY["taskId"], "--outcome", "failed", "--limit", "3")
        assert (sent.code, EVENT in sent.out, "HTTP 500" in sent.out) == (0, True, True)
        assert json.loads(shell.run("webhooks", "--json").out)["data"] == [DELIVERY]
        shown = shell.run("webhooks", "show", EVENT)
        assert "outcome    failed: every try failed" in shown.out
        assert "try 1      2026-08-11T02:34:43.000Z  HTTP 500  12 ms" in shown.out
        assert "try 2      2026-08-11T02:34:48.000Z  too slow  15000 ms" in shown.out
        assert '"type": "task.completed"' in shown.out
        assert "\x9b" not in shown.out
        replayed = shell.run("webhooks", "replay", EVENT)
        assert (replayed.code, replayed.out) == (0, f"{EVENT} will be sent again.\n")
    requests = [line for line in FakeBroker.requests if line not in {"GET /health", "GET /api/me"}]
    assert requests[0] == f"GET /api/deliveries?task={DELIVERY['taskId']}&outcome=failed&limit=3"
    assert requests[-1] == f"POST /api/deliveries/{EVENT}/replay"


# -- costs


def test_costs_of_a_running_broker_are_shown_as_a_table(served: Shell) -> None:
    ended = served.run("costs", "--by", "provider")
    assert ended.code == 0, ended.err
    titles, *rows = ended.out.splitlines()
    assert titles.split()[:2] == ["provider", "attempts"]
    assert [row.split()[:3] for row in rows] == [["sandbox", "1", "1"], ["total", "1", "1"]]
    assert rows[0].split()[-6:] == ["4", "credits", "0.0200", "0.0200", "0.0000", "0"]


def test_costs_are_printed_as_csv_and_json(served: Shell) -> None:
    header, row = served.run("costs", "--by", "model", "--csv").out.splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["usd"] == "0.020000"
    (document,) = map(json.loads, served.run("costs", "--by", "model", "--json").out.splitlines())
    assert [one["name"] for one in document["data"]["rows"]] == ["nano-banana"]
    assert "No order was submitted since 2999-01-01." in served.run("costs", "--since", "2999-01-01").err


def test_wrong_grouping_is_a_sentence(served: Shell) -> None:
    ended = served.run("costs", "--by", "colour")
    assert (ended.code, "by must be one of day, model, provider, user" in ended.err) == (1, True)
