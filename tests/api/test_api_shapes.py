"""The native error shape from every source, CORS, readiness and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from broker.api.http.responses import error_response, to_json
from broker.errors import STATUS_OF, TASK_CODES, ApiError, FieldError
from broker.i18n import LANGUAGES, Language, Messages, language_of
from broker.server.deadlines import ConnectionLimits
from storage.errors import StorageError
from storage.states import TaskState
from storage.tables import Tables
from tests.support.api import ApiBroker, open_api
from tests.support.clock import ManualClock
from tests.support.log_lines import captured_lines

pytestmark = pytest.mark.anyio

MESSAGES = Messages.load()
IMAGE = f"/uploads/images/generated_{'0' * 43}.png"
CANARY = "canary-in-an-error-message"


def a_request(language: str = "en") -> Request:
    return Request({"type": "http", "headers": [(b"accept-language", language.encode())]})


# -- the shape


@pytest.mark.parametrize("code", sorted(STATUS_OF))
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_has_its_status_and_a_sentence_in_every_language(code: str, language: str) -> None:
    answer = error_response(MESSAGES, a_request(language), ApiError(code, "What to do."), {})
    document = json.loads(bytes(answer.body))
    assert answer.status_code == STATUS_OF[code]
    assert list(document) == ["success", "error", "code", "retryable"]
    assert document["code"] == code
    assert document["error"]
    assert (language == "en") == document["error"].isascii()


@pytest.mark.parametrize("code", sorted(TASK_CODES))
def test_every_task_error_has_a_sentence_in_every_language(code: str) -> None:
    texts = {MESSAGES.get(code, language) for language in LANGUAGES}
    assert len(texts) == 3
    assert not any("{" in sentence for sentence in texts)


def test_error_has_field_and_details() -> None:
    errors = [FieldError(field="a", message="A."), FieldError(field="b", message="B.")]
    error = ApiError("invalid_request", "A.", field="a", details=errors, retry_after=0.2, retryable=True)
    answer = error_response(MESSAGES, a_request(), error, {})
    document = json.loads(bytes(answer.body))
    assert document["field"] == "a"
    assert document["details"] == [{"field": "a", "message": "A."}, {"field": "b", "message": "B."}]
    assert document["retryable"] is True
    assert answer.headers["retry-after"] == "1"


def test_missing_message_is_an_error_at_start() -> None:
    with pytest.raises(ValueError, match="is missing"):
        Messages.load('[processing]\nen = "x"\nzh = "x"\nru = "x"')


@pytest.mark.parametrize("key", sorted(MESSAGES.table))
def test_message_has_the_same_placeholder_in_every_language(key: str) -> None:
    """At most one; if one translation omits the English detail, all do."""
    texts = MESSAGES.table[key]
    places = {language: re.findall(r"\{[^}]*\}", text) for language, text in texts.items()}
    assert all(found in ([], ["{detail}"]) for found in places.values())
    assert places["zh"] == places["ru"]
    assert places["en"] == ["{detail}"] or places["zh"] == []
    assert re.search(r"[\u4e00-\u9fff]", texts["zh"])
    assert re.search(r"[\u0400-\u04ff]", texts["ru"])
    is_title = key == "untitled_conversation"
    assert all(text == text.strip() and (is_title or text[-1] in ".。}") for text in texts.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_task_error_states_whether_it_was_billed(language: Language) -> None:
    for code in TASK_CODES:
        ends = [MESSAGES.task_error(code, billed, language) for billed in ("yes", "no", "unknown")]
        assert len(set(ends)) == 3
        assert all(end.startswith(MESSAGES.get(code, language)) and "\n" not in end for end in ends)


@pytest.mark.parametrize(
    ("header", "language"),
    [("", "en"), ("zh", "zh"), ("ZH-hans-CN", "zh"), ("ru-RU;q=0.5", "ru"), ("de,ru;q=0.1", "ru"), ("*", "en"),
     ("ru;q=2", "en"), ("zh;q=0", "en"), ("en;q=0.5, ru;q=0.6", "ru"), (",,,;;q=,\x00", "en"), ("x" * 100_000, "en"),
     ("zh;q=" + "9" * 1000, "en"), ("zhh", "en")],
)  # fmt: skip
def test_accept_language_is_read_leniently(header: str, language: str) -> None:
    assert language_of(header) == language


def test_lone_surrogate_does_not_break_a_response() -> None:
    """Texts of a provider are stored unchanged; a response with them must be valid JSON."""
    assert json.loads(to_json({"a": "\ud800 ü"})) == {"a": "\ud800 ü"}


# -- sources of errors


async def check(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert (document["success"], document["code"]) == (False, code)
    assert isinstance(document["error"], str)
    assert isinstance(document["retryable"], bool)


async def test_unknown_paths_and_methods_are_rejected(tmp_path: Path) -> None:
    """Also with a slash at the end: a redirect would use the Host of the request."""
    async with open_api(tmp_path) as broker:
        for path in ("/nope", "/api", "/api/task", "/api/task/", "/health/", "/api/task/x/y", "/.//health", "/%00"):
            await check(await broker.client.get(path), 404, "not_found")
        wrong = {
            ("POST", "/health"): "GET, HEAD",
            ("PUT", f"/api/task/task_{'0' * 43}"): "DELETE, GET, HEAD",
            ("GET", "/api/generate/image"): "POST",
            ("PATCH", "/api/webhook/nano-banana"): "GET, HEAD, POST",
            ("OPTIONS", "/api/tasks"): "GET, HEAD",
            ("TRACE", "/health"): "GET, HEAD",
            ("BREW", IMAGE): "GET, HEAD",
        }
        for (method, path), allowed in wrong.items():
            answer = await broker.client.request(method, path)
            await check(answer, 405, "invalid_request")
            assert answer.headers["allow"] == allowed
        assert (await broker.client.head("/health")).status_code == 200


async def test_a_large_body_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True, max_file_size=1000) as broker:
        most = 14 * 1000 + 2 * 2**20
        big = b'{"prompt":"' + b"x" * most + b'"}'
        answer = await broker.client.post(
            "/api/generate/image", content=big, headers={"content-type": "application/json"}
        )
        await check(answer, 413, "payload_too_large")
        head = b"POST /api/generate/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        announced = await broker.send_raw(head + b"Connection: close\r\nContent-Length: 999999999\r\n\r\n")
        assert announced.startswith(b"HTTP/1.1 413 ")


class Broken:
    """Images repository that fails with the given error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def get_by_name(self, _: str) -> None:
        raise self._error


def mount_broken_images(broker: ApiBroker, error: Exception) -> None:
    tables = Tables(broker.services.database)
    vars(tables)["images"] = Broken(error)
    broker.mount(tables=tables)


async def test_storage_error_is_temporary(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        mount_broken_images(broker, StorageError(CANARY))
        answer = await broker.client.get(IMAGE)
        await check(answer, 503, "unavailable")
        assert answer.json()["retryable"] is True
        assert answer.headers["retry-after"] == "5"
        assert CANARY not in answer.text


async def test_unforeseen_error_is_answered_without_details(tmp_path: Path) -> None:
    """Neither the response nor the log repeats the text of an error: it may contain what a caller sent."""
    with captured_lines() as lines:
        async with open_api(tmp_path) as broker:
            mount_broken_images(broker, KeyError(CANARY))
            await check(await broker.client.get(IMAGE), 500, "internal_error")
            assert (await broker.client.get("/health")).status_code == 200
    (line,) = (line for line in lines if line["action"] == "request_failed")
    logged = line["exception"]
    assert "KeyError" in logged
    assert "api/images.py" in logged
    assert CANARY not in logged
    assert CANARY not in str(lines)


class FailingReader:
    """Reader of a blob that fails in the middle."""

    def __init__(self) -> None:
        self.closed = False

    def __aiter__(self) -> FailingReader:
        return self

    async def __anext__(self) -> bytes:
        raise OSError(5, CANARY)

    async def aclose(self) -> None:
        self.closed = True


async def test_failing_response_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A partial image must not look complete, and no second response may follow the first."""
    reading = FailingReader()

    class Blobs:
        async def get_link(self, *_: Any) -> None:
            return None

        async def open(self, *_: Any) -> FailingReader:
            return reading

    async with open_api(tmp_path, sockets=True, blobs=Blobs()) as broker:
        image = await broker.add_image("task_x", b"x" * 100)
        with pytest.raises(httpx.RemoteProtocolError):
            await broker.client.get(f"/uploads/images/{image.name}")
        assert reading.closed
    assert "Exception in ASGI application" not in caplog.text


# -- other web sites


ORIGIN = "https://app.example.com"


async def preflight(broker: ApiBroker, origin: str, headers: str = "authorization,idempotency-key") -> httpx.Response:
    headers_sent = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": headers,
    }
    return await broker.client.options("/api/generate/image", headers=headers_sent)


async def test_only_configured_origins_are_allowed(tmp_path: Path) -> None:
    async with open_api(tmp_path, cors_origins=(ORIGIN,)) as broker:
        allowed = await preflight(broker, ORIGIN)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        sdk = await preflight(broker, ORIGIN, "authorization,content-type,openai-organization,x-stainless-retry-count")
        assert sdk.status_code == 200, sdk.text
        fal = await preflight(broker, ORIGIN, "authorization,content-type,x-fal-target-url,x-fal-queue-priority")
        assert fal.status_code == 200, fal.text
        upload = [f"x-goog-upload-{name}" for name in "protocol command offset file-name".split()]
        upload += [f"x-goog-upload-header-content-{name}" for name in ("length", "type")]
        google = await preflight(broker, ORIGIN, ",".join(["x-goog-api-key", "x-server-timeout", *upload]))
        assert google.status_code == 200, google.text
        for origin in ("null", f"{ORIGIN}.evil.com", "https://evil.com", ORIGIN.upper(), f"{ORIGIN}/", "http://app.example.com",
                       "https://xapp.example.com", "*", f"{ORIGIN}:443"):  # fmt: skip
            rejected = await preflight(broker, origin)
            assert rejected.status_code == 400, origin
            assert "access-control-allow-origin" not in rejected.headers
            answer = await broker.client.get("/health", headers={"Origin": origin})
            assert "access-control-allow-origin" not in answer.headers
        answer = await broker.client.get("/nope", headers={"Origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed >= {"ETag", "Retry-After", "Location", "Warning", "X-Request-ID", "X-Should-Retry"}
        assert exposed >= {"X-Goog-Upload-URL", "X-Goog-Upload-Status", "Preference-Applied"}
        assert "access-control-allow-credentials" not in answer.headers
        assert "Origin" in answer.headers["vary"]


async def test_without_origins_cors_is_off(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        assert (await preflight(broker, ORIGIN)).status_code == 405
        answer = await broker.client.get("/health", headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]


# -- operators


async def test_readiness_names_the_failing_part(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        ready = await broker.client.get("/ready")
        assert ready.status_code == 200
        assert ready.json() == {
            "status": "ready",
            "checks": dict.fromkeys(("database", "blobs", "worker", "server"), "ok"),
        }

        class Full:
            async def check(self) -> None:
                raise StorageError("the disk is full: free some space")

        broker.mount(blobs=Full(), clock=ManualClock(9e9))
        answer = await broker.client.get("/ready")
        await check(answer, 503, "unavailable")
        checks = answer.json()["checks"]
        assert checks["database"] == "ok"
        assert "free some space" in checks["blobs"]
        assert "30 seconds" in checks["worker"]


async def test_metrics_count_tasks_and_errors(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await broker.add_task(number=1)
        await broker.add_task(number=2, state=TaskState.SUCCEEDED, ended_at=5.0)
        await broker.client.get("/api/task/unknown")
        page = await broker.client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        assert 'broker_tasks{state="waiting"} 1.0' in page.text
        assert 'broker_tasks{state="failed"} 0.0' in page.text
        assert 'broker_request_errors_total{code="task_not_found"} 1.0' in page.text


async def test_cookies_are_never_parsed(tmp_path: Path) -> None:
    """One cookie of 15 kB would stop the server for seconds: Python 3.11.7 reads them in quadratic time."""
    async with open_api(tmp_path) as broker:
        cookie = {"Cookie": 'a="' + "\\" * 15_000 + '"'}
        for path in ("/health", "/api/tasks", "/api/task/x", IMAGE, "/ready", "/api/webhook/kie"):
            assert (await broker.client.get(path, headers=cookie, timeout=2)).status_code in {200, 404}


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65536


async def test_endless_body_is_cut_off(tmp_path: Path) -> None:
    """Also if the response is sent without reading it."""
    async with open_api(tmp_path, limits=ConnectionLimits(head_seconds=0.3), max_file_size=1000) as broker:
        headers = {"content-type": "application/json"}
        try:
            answer = await broker.client.post("/api/generate/image", content=endless(), headers=headers)
        except httpx.HTTPError:
            return
        assert answer.status_code == 413
