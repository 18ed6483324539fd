"""Brokers whose only provider is the emulator of one dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.brokers import RunningBroker, open_broker

PROVIDERS: Final[Mapping[str, Callable[[str], Mapping[str, Any]]]] = {
    "kie": lambda url: {"kie_keys": "key", "api_url": url, "upload_url": url},
    "gemini": lambda url: {"gemini_keys": "key", "gemini_url": url},
    "replicate": lambda url: {"replicate_tokens": "key", "replicate_url": f"{url}/v1"},
    "fal": lambda url: {"fal_keys": "key", "fal_url": url, "fal_rest_url": f"{url}/v1"},
    "wavespeed": lambda url: {"wavespeed_keys": "key", "wavespeed_url": url},
    "openrouter": lambda url: {"openrouter_keys": "key", "openrouter_url": f"{url}/api/v1"},
    "nanobananaapi": lambda url: {"nanobananaapi_keys": "key", "nanobananaapi_url": f"{url}/api/v1/nanobanana"},
}
"""By provider: URL of its emulator → settings of the provider's package."""


@asynccontextmanager
async def broker_before(provider: str, folder: Path, **settings: Any) -> AsyncIterator[RunningBroker]:
    """Run a broker before the emulator of a provider, both over real HTTP."""
    options = Options(dialect=provider, api_key="key", duration=0.05, callback_spacing=0.05, creates_per_window=1000)
    async with serve_sandbox(options=options) as url:
        chosen = {"kie_keys": (), **PROVIDERS[provider](url), **settings}
        async with open_broker(folder, sandbox=url, **chosen) as broker:
            yield broker
