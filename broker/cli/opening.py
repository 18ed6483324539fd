"""Opening the system for a port, with a sandbox provider where no other is configured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from broker.bootstrap import open_services, serving_database
from broker.callbacks.public_url import check_configured
from broker.services import Services
from broker.settings import Settings


@asynccontextmanager
async def open_system(settings: Settings, port: int, *, isolates_images: bool = False) -> AsyncIterator[Services]:
    """Open the system for a port, with a sandbox if there is no provider key. isolates_images: see `open_services`."""
    if settings.webhook_base_url:
        check_configured(settings.webhook_base_url)  # checked although the sandbox does not need it
    open_serving = partial(open_services, port=port, isolates_images=isolates_images, open_database=serving_database)
    if not settings.sandboxed:
        async with open_serving(settings) as services:
            yield services
        return
    from broker.cli.sandbox import run_sandbox

    async with (
        run_sandbox(settings, port + 1) as sandbox_settings,
        open_serving(sandbox_settings, local_provider=True) as services,
    ):
        yield services
