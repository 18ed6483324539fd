"""Every provider, with the responses of its upstream in each class of outcome.

To add a provider: one `Case`. The upstream is a real, small HTTP server that shares no code with the adapters.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from broker.catalog import Catalog
from broker.net.api_client import ApiClient
from broker.providers.base import DEFAULT_KEY_ID, Provider, ProviderContext, ProviderPackage
from broker.providers.registry import PROVIDERS
from tests.examples.provider import EXAMPLE

PACKAGES = {package.name: package for package in PROVIDERS}
KEY = "key-5f1c0e7d9b2a"
TOKEN = "token-83ab41c6"
CALLBACK = f"https://broker.example/api/webhook/nano-banana?task=task_1&attempt=1&token={TOKEN}"
IMAGE = "https://tempfile.example/p/one.png"
JOB = "558a0e58d58a6cb69e5c6a55170398da"


@dataclass(frozen=True, kw_only=True)
class Got:
    """A request as the upstream received it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Says:
    """One response. body: bytes as they are, anything else as JSON. hang_up, quiet: none after the request is read."""

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
        self.got: list[Got] = []
        self._script: deque[Says] = deque()
        self._talks: set[asyncio.Task[None]] = set()
        self.url = ""

    def will(self, *answers: Says) -> None:
        self._script.extend(answers)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for talk in self._talks:
                talk.cancel()
            await asyncio.gather(*self._talks, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.ensure_future(self._talk(reader, writer))
        self._talks.add(talk)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        self.got.append(Got(method=method, path=unquote(parts.path), query=query, headers=headers, body=body))
        says = self._script.popleft()
        if says.hang_up:
            return False
        if says.quiet:
            await asyncio.Event().wait()
        writer.write(says.encoded())
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
    """Return the adapter of a package, bound to the key in its settings (by field)."""
    return package.factory(
        ProviderContext(
            name=package.name,
            key_id=DEFAULT_KEY_ID,
            settings=package.settings.model_validate(settings),
            client=client,
            catalog=catalog,
            now=now,
            creates_per_10s=20,
            concurrency=100,
        )
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One provider. All responses of a list belong to the same class of outcome."""

    package: ProviderPackage
    settings: Callable[[str], Mapping[str, Any]]
    """URL of the upstream → settings with `KEY`."""
    model: str = "nano-banana"
    """One that it serves."""
    auth_scheme: str = "Bearer"
    accepted: tuple[Says, ...]
    refused: tuple[tuple[Says, str, bool], ...]
    unknown: tuple[Says, ...]
    running: tuple[Says, ...]
    finished: tuple[Says, ...]
    failed: tuple[Says, ...]
    unreadable: tuple[Says, ...]
    callbacks_running: tuple[Any, ...]
    callbacks_finished: tuple[Any, ...]
    callbacks_failed: tuple[Any, ...]

    @property
    def name(self) -> str:
        return self.package.name

    def build(self, url: str, client: ApiClient, catalog: Catalog, now: Callable[[], float]) -> Provider:
        return open_provider(self.package, self.settings(url), client, catalog, now)


ECHO = f"cannot reach {CALLBACK} with Bearer {KEY}"
"""A message of a provider that repeats secrets."""

PAGE = Says(status=502, body=b"<html><center>nginx</center></html>", headers={"content-type": "text/html"})
UNKNOWN_ANYWHERE = (
    Says(hang_up=True),
    PAGE,
    Says(status=500, body={"code": 500, "msg": ECHO}),
    Says(status=503, body={"message": ECHO}),
    Says(status=504),
    Says(status=408, body={"msg": ECHO}),
    Says(status=409, body={}),
    Says(status=425, body={}),
    Says(status=200),
    Says(status=200, body=b"<html>welcome</html>"),
    Says(status=200, body=b'{"code":200,"data":{"tas'),
    Says(status=200, body=[]),
    Says(status=200, body={"code": 200, "msg": "success", "data": None}),
)


def _kie_record(**data: Any) -> dict[str, Any]:
    return {"code": 200, "msg": "success", "data": {"taskId": JOB, "model": "nano-banana-2", **data}}


def _result(*urls: str) -> str:
    return json.dumps({"resultUrls": list(urls)})


KIE = Case(
    package=PACKAGES["kie"],
    settings=lambda url: {"api_key": KEY, "api_url": url, "upload_url": url, "upload_references": True},
    accepted=(
        Says(body={"code": 200, "msg": "success", "data": {"taskId": JOB}}),
        Says(body={"code": "200", "message": "success", "data": {"taskId": JOB, "recordId": "other"}}),
        Says(body={"code": 0, "data": {"task_id": JOB}}),
    ),
    refused=(
        (Says(body={"code": 402, "msg": ECHO, "data": None}), "provider_credits", False),
        (Says(status=401, body={"code": 401, "msg": ECHO}), "provider_auth", False),
        (Says(body={"code": 422, "msg": ECHO}), "provider_rejected", False),
        (Says(status=404, body=b"not here"), "provider_rejected", False),
        (Says(body={"code": 429, "msg": ECHO}), "provider_rate_limited", True),
    ),
    unknown=(*UNKNOWN_ANYWHERE, Says(body={"code": 500, "msg": ECHO, "data": None}), Says(body={"code": 501})),
    running=tuple(Says(body=_kie_record(state=state)) for state in ("waiting", "queuing", "generating", "dreaming")),
    finished=(Says(body=_kie_record(state="success", resultJson=_result(IMAGE), creditsConsumed=8)),),
    failed=(Says(body=_kie_record(state="fail", failCode="500", failMsg=ECHO, creditsConsumed=0)),),
    unreadable=(
        Says(hang_up=True),
        PAGE,
        Says(body={"code": 422, "msg": "recordInfo is null", "data": None}),
        Says(status=404, body={"code": 404, "msg": ECHO}),
        Says(status=401, body={"code": 401, "msg": ECHO}),
        Says(body={"code": 200, "data": None}),
        Says(body=b'{"code":200,"data":{"taskId":'),
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
    settings=lambda url: {"api_key": KEY, "api_url": f"{url}/nano-banana"},
    accepted=(
        Says(body={"code": 200, "data": {"status": "pending", "task_id": JOB}}),
        Says(status=201, body={"job_id": JOB, "url": "https://service.example/status/1"}),
        Says(body={"status": "success", "data": {"id": JOB}}),
    ),
    refused=(
        (Says(status=401, body={"error": {"message": ECHO}, "id": "request-1"}), "provider_auth", False),
        (Says(status=400, body={"error": ECHO}), "provider_rejected", False),
        (Says(body={"code": 429, "message": ECHO}), "provider_rate_limited", True),
        (Says(status=308, headers={"location": "https://elsewhere.example/"}), "provider_error", False),
    ),
    unknown=UNKNOWN_ANYWHERE,
    running=tuple(
        Says(body={"code": 200, "data": {"task_id": JOB, "status": status}})
        for status in ("pending", "processing", "dreaming")
    ),
    finished=(
        Says(body={"code": 200, "data": {"task_id": JOB, "status": "completed", "output": {"image_url": IMAGE}}}),
        Says(body={"status": "succeeded", "output": IMAGE}),
    ),
    failed=(Says(body={"code": 200, "data": {"task_id": JOB, "status": "failed"}, "error": {"message": ECHO}}),),
    unreadable=(Says(hang_up=True), PAGE, Says(status=404, body={"error": ECHO}), Says(body=b"{")),
    callbacks_running=({"task_id": JOB, "status": "processing"},),
    callbacks_finished=(
        {"task_id": JOB, "status": "completed", "output": {"image_url": IMAGE}},
        {"jobId": JOB, "result": {"imageUrls": [IMAGE]}},
    ),
    callbacks_failed=({"task_id": JOB, "status": "failed", "error": ECHO},),
)

EXAMPLE_CASE = Case(
    package=EXAMPLE,
    settings=lambda url: {"example_key": KEY, "example_url": url},
    model="example-painter",
    auth_scheme="Key",
    accepted=(Says(status=202, body={"id": JOB, "status": "queued"}),),
    refused=(
        (Says(status=401, body={"error": {"message": ECHO}}), "provider_auth", False),
        (Says(status=422, body={"error": ECHO}), "provider_rejected", False),
        (Says(status=410, body={"error": "gone"}), "no_image", False),
        (Says(status=429, body={"error": ECHO}), "provider_rate_limited", True),
    ),
    unknown=UNKNOWN_ANYWHERE,
    running=tuple(Says(body={"id": JOB, "status": status}) for status in ("queued", "running", "dreaming")),
    finished=(Says(body={"id": JOB, "status": "succeeded", "url": IMAGE}),),
    failed=(Says(body={"id": JOB, "status": "failed", "error": {"message": ECHO}}),),
    unreadable=(Says(hang_up=True), PAGE, Says(status=404, body={"error": ECHO}), Says(body=b"{")),
    callbacks_running=({"id": JOB, "status": "running"},),
    callbacks_finished=({"id": JOB, "status": "succeeded", "url": IMAGE},),
    callbacks_failed=({"id": JOB, "status": "failed", "error": ECHO},),
)

CASES = (KIE, LEGACY, EXAMPLE_CASE)
