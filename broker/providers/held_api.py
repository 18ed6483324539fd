"""The base of adapters for APIs that answer an order with the image: the request is held for a minute or more.

A lost answer is lost money: no job id leads to the image. References are part of the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from broker.catalog import Wire
from broker.errors import ProviderError
from broker.net.api_client import StreamedResponse, read_response
from broker.net.http_request import StreamedBody
from broker.orders import Order
from broker.providers.base import ResultSink
from broker.providers.job_api import JobApi
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Pending, Report

ANSWER_SECONDS: Final = 300.0
ANSWER_4K_SECONDS: Final = 600.0
"""Time of an answer; relays of Gemini advise these."""
MAX_ANSWER_BYTES: Final = 256 * 2**20
"""Limit of an answer, its images included."""


class HeldApi(JobApi):
    """One account at such an API."""

    holds_submit = True

    def auth(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the headers and the query that carry the key."""
        return {"Authorization": f"{self.auth_scheme} {self._api_key}"}, {}

    # -- the provider's contract

    async def upload_references(self, order: Order) -> Order | Failed:
        return order

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        raise ProviderError(f"{self.name} has no jobs", permanent=True)

    def parse_callback(self, body: Any) -> Report:
        return Pending(check_in=0)

    # -- requests and responses

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, body: StreamedBody | None = None, resolution: str | None = None
    ) -> AsyncGenerator[StreamedResponse]:
        """Send one request with the key, and read its response while it arrives; see `ApiClient.stream`."""
        headers, params = self.auth()
        async with self.context.client.stream(
            method,
            self.base_url + path,
            headers=headers,
            params=params,
            body=body,
            timeout=ANSWER_4K_SECONDS if resolution == "4K" else ANSWER_SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
        ) as response:
            yield response

    async def request(self, method: str, path: str, **options: Any) -> ProviderResponse:
        headers, params = self.auth()
        url = self.base_url + path
        response = await self.context.client.request(method, url, headers=headers, params=params, **options)
        return ProviderResponse.from_http(response, self.context.now(), id_fields=self.id_fields)

    async def read_whole(self, response: StreamedResponse) -> ProviderResponse:
        """Return a response without an image."""
        http = await read_response(response)
        return ProviderResponse.from_http(http, self.context.now(), id_fields=self.id_fields).unwrap_error()

    def find_wire(self, order: Order) -> Wire | None:
        return self.context.catalog.wire(self.catalog_name, order.params.model, order.mode)
