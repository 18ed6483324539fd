"""Providers with the responses of their upstream in each class of outcome.

To add a provider: one `Case`, in a module of its own in `tests.contracts.cases`. The upstream is a real, small HTTP
server that shares no code with the adapters.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from broker.catalog import Catalog
from broker.net.api_client import ApiClient
from broker.net.fetcher import Fetcher
from broker.providers.base import NO_KEY_ID, Provider, ProviderContext, ProviderPackage, key_id_of
from broker.providers.registry import PROVIDERS
from broker.reports import STORED_PREFIX
from tests.examples.provider import EXAMPLE

PACKAGES = {package.name: package for package in PROVIDERS}
KEY = "key-5f1c0e7d9b2a"
TOKEN = "token-83ab41c6"
CALLBACK = f"https://broker.example/api/webhook/nano-banana?task=task_1&attempt=1&token={TOKEN}"
IMAGE = "https://tempfile.example/p/one.png"
JOB = "558a0e58d58a6cb69e5c6a55170398da"


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request as the upstream received it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Canned:
    """A prepared response; none with hang_up or quiet. body: bytes as they are, anything else as JSON."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_up: bool = False
    quiet: bool = False

    def encoded(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        kind = "text/plain" if isinstance(self.body, bytes) else "application/json"
        head = {"content-type": kind, "content-length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} Prepared", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        return "\r\n".join(lines).encode() + body


class Upstream:
    """A server that gives the prepared responses in order, and records the requests."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._script: deque[Canned] = deque()
        self._conversations: set[asyncio.Task[None]] = set()
        self.url = ""

    def respond(self, *answers: Canned) -> None:
        self._script.extend(answers)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for conversation in self._conversations:
                conversation.cancel()
            await asyncio.gather(*self._conversations, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.ensure_future(self._converse(reader, writer))
        self._conversations.add(conversation)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        self.received.append(Received(method=method, path=unquote(parts.path), query=query, headers=headers, body=body))
        canned = self._script.popleft()
        if canned.hang_up:
            return False
        if canned.quiet:
            await asyncio.Event().wait()
        writer.write(canned.encoded())
        await writer.drain()
        return True


def closed_port() -> str:
    """Return the URL of a closed port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def open_provider(
    package: ProviderPackage, settings: Mapping[str, Any], client: ApiClient, catalog: Catalog, now: Callable[[], float]
) -> Provider:
    """Return the adapter of a package, bound to the first key in its settings (by field)."""
    return package.factory(open_context(package, settings, client, catalog, now))


def open_context(
    package: ProviderPackage,
    settings: Mapping[str, Any],
    client: ApiClient,
    catalog: Catalog,
    now: Callable[[], float],
    *,
    allow: Sequence[str] = ("127.0.0.1",),
) -> ProviderContext:
    """Return the context of a package's first key. allow: hosts of our network that the provider may name."""
    chosen = package.settings.model_validate(settings)
    key = next(iter(chosen.keys), None)
    return ProviderContext(
        name=package.name,
        key_id=key_id_of(key) if key else NO_KEY_ID,
        api_key=key,
        settings=chosen,
        client=client,
        fetcher=Fetcher(allow=allow),
        catalog=catalog,
        now=now,
        creates_per_10s=20,
        concurrency=100,
    )


class RecordingSink:
    """A sink that keeps results in memory."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []

    async def store(self, chunks: AsyncIterator[bytes]) -> str:
        self.stored.append(b"".join([chunk async for chunk in chunks]))
        return f"{STORED_PREFIX}{len(self.stored) - 1}"


SINK = RecordingSink()
"""For tests whose provider has no results in its responses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One provider. All responses of a list belong to the same class of outcome."""

    package: ProviderPackage
    settings: Callable[[str], Mapping[str, Any]]
    """URL of the upstream → settings with `KEY`."""
    model: str = "nano-banana"
    """One that it serves."""
    auth_scheme: str = "Bearer"
    accepted: tuple[Canned, ...]
    refused: tuple[tuple[Canned, str, bool], ...]
    unknown: tuple[Canned, ...]
    running: tuple[Canned, ...]
    finished: tuple[Canned, ...]
    failed: tuple[Canned, ...]
    unreadable: tuple[Canned, ...]
    callbacks_running: tuple[Any, ...]
    callbacks_finished: tuple[Any, ...]
    callbacks_failed: tuple[Any, ...]
    canceled: Canned | None = None
    """Response to a cancellation; None if the provider offers none."""
    job: str = JOB
    """The job id that the adapter reports for `JOB`."""
    before_end: tuple[Canned, ...] = ()
    """Responses to a check before each of `finished` and `failed`."""

    @property
    def name(self) -> str:
        return self.package.name

    def build(self, url: str, client: ApiClient, catalog: Catalog, now: Callable[[], float]) -> Provider:
        return open_provider(self.package, self.settings(url), client, catalog, now)


ECHO = f"cannot reach {CALLBACK} with Bearer {KEY}"
"""A message of a provider that repeats secrets."""

PAGE = Canned(status=502, body=b"<html><center>nginx</center></html>", headers={"content-type": "text/html"})
UNKNOWN_ANYWHERE = (
    Canned(hang_up=True),
    PAGE,
    Canned(status=500, body={"code": 500, "msg": ECHO}),
    Canned(status=503, body={"message": ECHO}),
    Canned(status=504),
    Canned(status=408, body={"msg": ECHO}),
    Canned(status=409, body={}),
    Canned(status=425, body={}),
    Canned(status=499, body={"code": 499, "msg": ECHO}),
    Canned(status=200),
    Canned(status=200, body=b"<html>welcome</html>"),
    Canned(status=200, body=b'{"code":200,"data":{"tas'),
    Canned(status=200, body=[]),
    Canned(status=200, body={"code": 200, "msg": "success", "data": None}),
)


def _kie_record(**data: Any) -> dict[str, Any]:
    return {"code": 200, "msg": "success", "data": {"taskId": JOB, "model": "nano-banana-2", **data}}


def _result(*urls: str) -> str:
    return json.dumps({"resultUrls": list(urls)})


KIE = Case(
    package=PACKAGES["kie"],
    settings=lambda url: {"kie_keys": KEY, "api_url": url, "upload_url": url, "upload_references": True},
    accepted=(
        Canned(body={"code": 200, "msg": "success", "data": {"taskId": JOB}}),
        Canned(body={"code": "200", "message": "success", "data": {"taskId": JOB, "recordId": "other"}}),
        Canned(body={"code": 0, "data": {"task_id": JOB}}),
    ),
    refused=(
        (Canned(body={"code": 402, "msg": ECHO, "data": None}), "provider_credits", False),
        (Canned(status=401, body={"code": 401, "msg": ECHO}), "provider_auth", False),
        (Canned(body={"code": 422, "msg": ECHO}), "provider_rejected", False),
        (Canned(status=404, body=b"not here"), "provider_rejected", False),
        (Canned(body={"code": 429, "msg": ECHO}), "provider_rate_limited", True),
    ),
    unknown=(*UNKNOWN_ANYWHERE, Canned(body={"code": 500, "msg": ECHO, "data": None}), Canned(body={"code": 501})),
    running=tuple(Canned(body=_kie_record(state=state)) for state in ("waiting", "queuing", "generating", "dreaming")),
    finished=(Canned(body=_kie_record(state="success", resultJson=_result(IMAGE), creditsConsumed=8)),),
    failed=(Canned(body=_kie_record(state="fail", failCode="500", failMsg=ECHO, creditsConsumed=0)),),
    unreadable=(
        Canned(hang_up=True),
        PAGE,
        Canned(body={"code": 422, "msg": "recordInfo is null", "data": None}),
        Canned(status=404, body={"code": 404, "msg": ECHO}),
        Canned(status=401, body={"code": 401, "msg": ECHO}),
        Canned(body={"code": 200, "data": None}),
        Canned(body=b'{"code":200,"data":{"taskId":'),
    ),
    callbacks_running=({"data": {"taskId": JOB, "state": "generating"}},),
    callbacks_finished=(
        {"code": 200, "data": {"taskId": JOB, "state": "success", "resultJson": _result(IMAGE)}},
        {"task_id": JOB, "status": "completed", "output": {"image_url": IMAGE}},
    ),
    callbacks_failed=({"code": 501, "msg": "failed", "data": {"taskId": JOB, "state": "fail", "failMsg": ECHO}},),
)

LEGACY = Case(
    package=PACKAGES["legacy"],
    settings=lambda url: {"kie_keys": KEY, "api_url": f"{url}/nano-banana"},
    accepted=(
        Canned(body={"code": 200, "data": {"status": "pending", "task_id": JOB}}),
        Canned(status=201, body={"job_id": JOB, "url": "https://service.example/status/1"}),
        Canned(body={"status": "success", "data": {"id": JOB}}),
    ),
    refused=(
        (Canned(status=401, body={"error": {"message": ECHO}, "id": "request-1"}), "provider_auth", False),
        (Canned(status=400, body={"error": ECHO}), "provider_rejected", False),
        (Canned(body={"code": 429, "message": ECHO}), "provider_rate_limited", True),
        (Canned(status=308, headers={"location": "https://elsewhere.example/"}), "provider_error", False),
    ),
    unknown=UNKNOWN_ANYWHERE,
    running=tuple(
        Canned(body={"code": 200, "data": {"task_id": JOB, "status": status}})
        for status in ("pending", "processing", "dreaming")
    ),
    finished=(
        Canned(body={"code": 200, "data": {"task_id": JOB, "status": "completed", "output": {"image_url": IMAGE}}}),
        Canned(body={"status": "succeeded", "output": IMAGE}),
    ),
    failed=(Canned(body={"code": 200, "data": {"task_id": JOB, "status": "failed"}, "error": {"message": ECHO}}),),
    unreadable=(Canned(hang_up=True), PAGE, Canned(status=404, body={"error": ECHO}), Canned(body=b"{")),
    callbacks_running=({"task_id": JOB, "status": "processing"},),
    callbacks_finished=(
        {"task_id": JOB, "status": "completed", "output": {"image_url": IMAGE}},
        {"jobId": JOB, "result": {"imageUrls": [IMAGE]}},
    ),
    callbacks_failed=({"task_id": JOB, "status": "failed", "error": ECHO},),
)

EXAMPLE_CASE = Case(
    package=EXAMPLE,
    settings=lambda url: {"example_keys": KEY, "example_url": url},
    model="example-painter",
    auth_scheme="Key",
    accepted=(Canned(status=202, body={"id": JOB, "status": "queued"}),),
    refused=(
        (Canned(status=401, body={"error": {"message": ECHO}}), "provider_auth", False),
        (Canned(status=422, body={"error": ECHO}), "provider_rejected", False),
        (Canned(status=410, body={"error": "gone"}), "no_image", False),
        (Canned(status=429, body={"error": ECHO}), "provider_rate_limited", True),
    ),
    unknown=UNKNOWN_ANYWHERE,
    running=tuple(Canned(body={"id": JOB, "status": status}) for status in ("queued", "running", "dreaming")),
    finished=(Canned(body={"id": JOB, "status": "succeeded", "url": IMAGE}),),
    failed=(Canned(body={"id": JOB, "status": "failed", "error": {"message": ECHO}}),),
    unreadable=(Canned(hang_up=True), PAGE, Canned(status=404, body={"error": ECHO}), Canned(body=b"{")),
    callbacks_running=({"id": JOB, "status": "running"},),
    callbacks_finished=({"id": JOB, "status": "succeeded", "url": IMAGE},),
    callbacks_failed=({"id": JOB, "status": "failed", "error": ECHO},),
)
