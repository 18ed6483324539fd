"""A broker for the examples: real HTTP, the sandbox server as kie.ai, and the extensions under test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from broker.api.http.endpoint import Dialect
from broker.bootstrap import load_settings, open_services
from broker.providers.base import ProviderPackage
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from broker.services import Services
from broker.settings import Settings
from tests.examples.provider.upstream import ExampleUpstream, serve_upstream
from webhooks.signatures.standard import StandardSignature, write_secret

EXAMPLE_KEY: Final = "key-of-the-example"
WEBHOOK_KEY: Final = b"w" * 32
CALLER_KEY: Final = "key-of-a-caller"


@dataclass(frozen=True, kw_only=True)
class RunningBroker:
    """A broker that serves on a port of its own."""

    services: Services
    client: httpx.AsyncClient
    example: ExampleUpstream
    """The server on the other side of the example provider; unused if that is not configured."""


@asynccontextmanager
async def running_broker(
    folder: Path,
    *,
    providers: Sequence[ProviderPackage] = (),
    dialects: Sequence[Callable[[Services], Dialect]] = (),
    has_public_url: bool = False,
    **settings: Any,
) -> AsyncIterator[RunningBroker]:
    """Serve while the block runs."""
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(serve_sandbox(options=Options(duration=0.05, callback_spacing=0.05)))
        example = await stack.enter_async_context(serve_upstream(EXAMPLE_KEY, StandardSignature([WEBHOOK_KEY])))
        sock = bind_socket("127.0.0.1", 0)
        stack.callback(sock.close)
        base_url = f"http://127.0.0.1:{socket_port(sock)}"
        if providers:
            settings["example_url"] = example.url
        loaded = example_settings(
            folder,
            providers,
            api_url=sandbox,
            upload_url=sandbox,
            poll_every=0.05,
            webhook_base_url=base_url if has_public_url else "",
            download_allow=(sandbox.removeprefix("http://"), example.url.removeprefix("http://")),
            **settings,
        )
        services = await stack.enter_async_context(
            open_services(loaded, port=socket_port(sock), extra_providers=providers, extra_dialects=dialects)
        )
        await stack.enter_async_context(running_server(services, sock))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base_url, timeout=30, verify=False))
        yield RunningBroker(services=services, client=client, example=example)


def example_settings(folder: Path, providers: Sequence[ProviderPackage], **more: Any) -> Settings:
    """Return the settings of a broker with a kie.ai key, and with those of the example if it is among `providers`."""
    if providers:
        more |= {"EXAMPLE_API_KEY": EXAMPLE_KEY, "example_webhook_key": write_secret(WEBHOOK_KEY)}
    return load_settings(
        env_file=None,
        extra_providers=providers,
        data_dir=folder,
        tunnel_api="http://127.0.0.1:9",
        kie_keys="key-of-kie",
        **more,
    )
