"""Requests with the key of one account at kie.ai."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.errors import ProviderError
from broker.net.api_client import ApiClient, FilePart, HttpResponse
from broker.providers import parsing
from broker.providers.base import STATUS_TIMEOUT_SECONDS
from broker.providers.kie.errors import KIE_ERRORS
from broker.providers.responses import ProviderResponse


@dataclass(frozen=True, kw_only=True)
class KieAccount:
    """Base URL, key and client."""

    name: str
    base_url: str
    api_key: str = field(repr=False)
    client: ApiClient
    now: Callable[[], float]

    def url(self, path: str) -> str:
        return self.base_url.rstrip("/") + path

    async def post_json(self, path: str, body: Mapping[str, Any]) -> HttpResponse:
        return await self.client.request("POST", self.url(path), headers=self._headers(), json=body)

    async def post_form(self, url: str, form: Mapping[str, str], files: Sequence[FilePart]) -> HttpResponse:
        return await self.client.request("POST", url, headers=self._headers(), form=form, files=files)

    async def get_status(self, path: str, params: Mapping[str, str]) -> HttpResponse:
        return await self.client.request(
            "GET", self.url(path), headers=self._headers(), params=params, timeout=STATUS_TIMEOUT_SECONDS
        )

    def parse(self, http: HttpResponse) -> ProviderResponse:
        return ProviderResponse.from_http(http, self.now(), KIE_ERRORS)

    def redact(self, text: str) -> str:
        return parsing.redact(text, (self.api_key,))

    def error(self, verb: str, response: ProviderResponse, *, permanent: bool = False) -> ProviderError:
        return response.to_error(f"{self.name}: {verb}", self.redact, permanent=permanent)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}
