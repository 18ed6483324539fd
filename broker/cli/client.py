"""A running broker, over HTTP: the same requests a front end sends."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from broker.cli.screen import Unable
from broker.errors import ProviderError
from broker.outgoing import Answer, ApiClient
from broker.settings import Settings

ASK_SECONDS = 3.0
OVERHEAD_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Client:
    """base: address without a slash at the end. key: of a trusted caller; None where none is configured."""

    api: ApiClient
    base: str
    key: str | None = None

    async def create(self, fields: Mapping[str, str], images: Sequence[bytes] = ()) -> list[str]:
        """Order images; the ids of their tasks. Repeated after a broken connection; with its key it is one order."""
        kind, body = _form(fields, images)
        headers = {"Idempotency-Key": secrets.token_hex(16), "Content-Type": kind}
        try:
            created = await self.ask("POST", "/api/generate/image", content=body, headers=headers)
        except ProviderError:
            created = await self.ask("POST", "/api/generate/image", content=body, headers=headers)
        return list(created["taskIds"])

    async def task(self, task_id: str) -> dict[str, Any]:
        """The task as a poll shows it."""
        answer: dict[str, Any] = await self.ask("GET", f"/api/task/{task_id}")
        return answer

    async def tasks(self, *, status: str | None, limit: int) -> dict[str, Any]:
        params = {"limit": str(limit)} | ({"status": status} if status else {})
        answer: dict[str, Any] = await self.ask("GET", "/api/tasks", params=params)
        return answer

    async def cancel(self, task_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("DELETE", f"/api/task/{task_id}")
        return answer

    async def image(self, path: str) -> bytes:
        """The bytes behind a result's path."""
        return (await self._send("GET", path)).body

    async def is_broker(self) -> bool:
        """Whether a broker answers here, and not nobody or something else."""
        try:
            answer = await self.api.request("GET", f"{self.base}/health", timeout=ASK_SECONDS)
            health = answer.json()
        except ProviderError:
            return False
        return isinstance(health, dict) and health.get("status") == "healthy"

    async def ask(self, method: str, path: str, **request: Any) -> Any:
        """The JSON document of an answer. Raises `Unable` with the broker's own words for a refusal."""
        return (await self._send(method, path, **request)).json()

    async def _send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **request: Any
    ) -> Answer:
        trust = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        answer = await self.api.request(method, self.base + path, headers={**(headers or {}), **trust}, **request)
        if not 200 <= answer.status < 300:
            raise Unable(_complaint(answer))
        return answer


def _form(fields: Mapping[str, str], images: Sequence[bytes]) -> tuple[str, bytes]:
    """Content-Type and body. The broker looks at the bytes of an image, not at the name and type given here."""
    boundary = secrets.token_hex(16)
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [(f'name="image"; filename="image-{n}"', content) for n, content in enumerate(images, 1)]
    lines = [
        line
        for head, content in parts
        for line in (f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode(), content, b"\r\n")
    ]
    return f"multipart/form-data; boundary={boundary}", b"".join([*lines, f"--{boundary}--\r\n".encode()])


def _complaint(answer: Answer) -> str:
    try:
        return str(answer.json()["error"])
    except (ProviderError, LookupError, TypeError):
        return f"The broker answered with HTTP {answer.status}."


@asynccontextmanager
async def client_for(base: str, settings: Settings) -> AsyncIterator[Client]:
    """A client of the broker at an address, closed at the end."""
    api = ApiClient(
        timeout=settings.request_timeout,
        max_connections=8,
        max_answer_bytes=settings.max_download_bytes + OVERHEAD_BYTES,
    )
    try:
        key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
        yield Client(api=api, base=base, key=key)
    finally:
        await api.aclose()


@asynccontextmanager
async def running_broker(settings: Settings) -> AsyncIterator[Client | None]:
    """The broker at BROKER_HOST:BROKER_PORT; None if none answers there."""
    async with client_for(address(settings.host, settings.port), settings) as client:
        yield client if await client.is_broker() else None


def address(host: str, port: int) -> str:
    """How this machine reaches a broker that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
