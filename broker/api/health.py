"""Health, readiness and metrics of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import TEXT, Endpoint, SuccessResponse, json_success
from broker.api.http.errors import RETRY_SECONDS, unavailable
from broker.api.http.responses import ErrorResponse, json_response, requested_language
from broker.clock import Clock
from broker.i18n import Messages
from broker.monitoring.collectors import DatabaseCollector
from broker.presenter import ResponseModel
from broker.tasks.queries import TaskQueries
from broker.tasks.worker import Worker
from storage.blobs.store import BlobStore
from storage.cluster_state import ClusterState
from storage.errors import StorageError

CHECK_SECONDS: Final = 5.0
MAX_HEARTBEAT_SECONDS: Final = 30.0


class HealthResponse(ResponseModel):
    status: Literal["healthy"]
    version: str


class ReadinessChecks(ResponseModel):
    """`ok`, or what is wrong."""

    database: str
    blobs: str
    worker: str
    server: str


class ReadinessResponse(ResponseModel):
    status: Literal["ready"]
    checks: ReadinessChecks


class UnreadyResponse(ErrorResponse):
    status: Literal["unready"]
    checks: ReadinessChecks


@dataclass(frozen=True, kw_only=True)
class HealthRoutes:
    clock: Clock
    cluster_state: ClusterState
    blobs: BlobStore
    queries: TaskQueries
    worker: Worker
    collector: DatabaseCollector
    messages: Messages
    version: str

    def endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, "GET", tag="operators")
        healthy, ready = json_success("it does", HealthResponse), json_success("they are", ReadinessResponse)
        unready = json_success("the parts that fail", UnreadyResponse, headers={"Retry-After": (True, "seconds")})
        page = SuccessResponse(text="Prometheus text format", content={"text/plain": TEXT})
        return [
            endpoint("/health", self.health, access="public", responses={200: healthy}, is_quiet=True),
            endpoint("/ready", self.ready, access="admin", responses={200: ready, 503: unready}),
            endpoint("/metrics", self.metrics, access="admin", responses={200: page}),
        ]

    async def health(self, _: Request) -> Response:
        """Check that the process answers."""
        return json_response(HealthResponse(status="healthy", version=self.version).to_document())

    async def ready(self, request: Request) -> Response:
        """Check that orders are stored and processed."""
        failures = {
            "database": await _failure_of(self.cluster_state.probe_write()),
            "blobs": await _failure_of(self.blobs.check()),
            "worker": self._worker_failure(),
            "server": "it is stopping" if self.queries.closing else None,
        }
        checks = ReadinessChecks(**{name: failure or "ok" for name, failure in failures.items()})
        if not any(failures.values()):
            return json_response(ReadinessResponse(status="ready", checks=checks).to_document())
        unready = UnreadyResponse(
            success=False,
            error=self.messages.get("unavailable", requested_language(request), unavailable().message),
            code="unavailable",
            retryable=True,
            status="unready",
            checks=checks,
        )
        return json_response(unready.to_document(), 503, {"retry-after": f"{RETRY_SECONDS:.0f}"})

    def _worker_failure(self) -> str | None:
        silent = self.clock.now() - self.worker.last_heartbeat
        if silent <= MAX_HEARTBEAT_SECONDS:
            return None
        return f"it has not been seen for more than {MAX_HEARTBEAT_SECONDS:.0f} seconds"

    async def metrics(self, _: Request) -> Response:
        """Get metrics for Prometheus."""
        return Response(await self.collector.render_page(), headers={"content-type": CONTENT_TYPE_LATEST})


async def _failure_of(check: Awaitable[object]) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check
    except (StorageError, TimeoutError) as error:
        return str(error) or f"no answer within {CHECK_SECONDS:.0f} seconds"
    return None
