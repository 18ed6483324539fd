"""Browsers: clients that keep cookies, and what their headers say of the page that sent a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from tests.support.api import PORT, ApiBroker

OWN = {"Origin": f"http://127.0.0.1:{PORT}"}

SITES: tuple[tuple[Mapping[str, str], bool], ...] = (
    ({}, False),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", **OWN}, False),
    ({"Sec-Fetch-Site": ""}, False),
    (OWN, True),
    ({"Origin": "null"}, False),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": f"https://127.0.0.1:{PORT}"}, False),
    ({"Origin": f"http://127.0.0.1:{PORT}.evil.example"}, False),
    ({"Origin": "http://127.0.0.1"}, False),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, True),
    ({"Referer": f"http://127.0.0.1:{PORT}/"}, False),
)
"""Headers, and whether they show that our own page sent the request. A browser sets both; a page can set neither."""


@asynccontextmanager
async def browser(broker: ApiBroker, *, address: str = "127.0.0.1", **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that keeps its cookies, and says that our own page sends its requests."""
    transport = httpx.ASGITransport(broker.mounted, raise_app_exceptions=False, client=(address, 50_000))
    base = f"http://127.0.0.1:{PORT}"
    async with httpx.AsyncClient(base_url=base, transport=transport, headers={**OWN, **headers}) as client:
        yield client
