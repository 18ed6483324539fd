"""For whoever runs the broker: is it alive, can it work, what has it done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import answer, language
from broker.broker import Broker
from broker.monitoring.collectors import DatabaseCollector
from broker.sentences import Sentences
from broker.tasks.worker import Worker
from storage.database import StorageError
from storage.migrate import probe

PATIENCE: Final = 5.0
OLDEST_BEAT: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Operations:
    broker: Broker
    worker: Worker
    collector: DatabaseCollector
    access: Access
    sentences: Sentences
    version: str

    async def health(self, _: Request) -> Response:
        """The process answers; nothing more."""
        return answer({"status": "healthy", "version": self.version})

    async def ready(self, request: Request) -> Response:
        """Whether an order that comes now would be kept and worked on; else which part is to blame."""
        self.access.require(request)
        parts = {
            "database": await _trouble(probe(self.broker.database)),
            "blobs": await _trouble(self.broker.blobs.check()),
            "worker": self._worker_trouble(),
            "server": "it is stopping" if self.broker.closing else None,
        }
        checks = {name: trouble or "ok" for name, trouble in parts.items()}
        if not any(parts.values()):
            return answer({"status": "ready", "checks": checks})
        document = {
            "success": False,
            "error": self.sentences.say("unavailable", language(request)),
            "code": "storage_full",
            "retryable": True,
            "status": "unready",
            "checks": checks,
        }
        return answer(document, 503, {"retry-after": "5"})

    def _worker_trouble(self) -> str | None:
        silent = self.broker.clock.now() - self.worker.last_heartbeat
        return f"it has not been seen for more than {OLDEST_BEAT:.0f} seconds" if silent > OLDEST_BEAT else None

    async def metrics(self, request: Request) -> Response:
        """The Prometheus text format."""
        self.access.require(request)
        return Response(await self.collector.render_page(), headers={"content-type": CONTENT_TYPE_LATEST})


async def _trouble(check: Awaitable[object]) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE):
            await check
    except (StorageError, TimeoutError) as error:
        return str(error) or f"no answer within {PATIENCE:.0f} seconds"
    return None


def installed_version() -> str:
    """Looked up once: it reads files."""
    try:
        return version("nano-banana-broker")
    except PackageNotFoundError:
        return "unknown"
