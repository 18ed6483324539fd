"""What stands before a broker for clients that speak TLS only: a proxy with a certificate of its own."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import patch
from urllib.parse import urlsplit

from anyio.from_thread import start_blocking_portal

from tests.support.certificates import make_certificate
from tests.support.faulty_http import Visit


@dataclass(kw_only=True)
class TlsFront:
    """A running proxy. cuts: how many answers to a POST it still cuts off after their first bytes."""

    upstream: str
    """Host and port."""
    certificate: Path
    port: int = 0
    cuts: int = 0
    posts: int = 0
    """Number of POST requests so far."""

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._forward(Visit(await reader.readuntil(b"\r\n\r\n"), reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _forward(self, visit: Visit) -> None:
        """Forward one request, and close the connection after its answer."""
        first, *lines = visit.head.split(b"\r\n")[:-2]
        kept = [line for line in lines if not line.lower().startswith(b"connection:")]
        is_cut = first.startswith(b"POST ") and self.cuts > 0
        ending = [] if is_cut else [b"Connection: close"]  # a server that closes itself does not see the reset
        head = b"\r\n".join([first, *kept, b"X-Forwarded-Proto: https", *ending, b"", b""])
        has_body = any(line.lower().startswith(b"content-length:") for line in lines)
        body = await visit.read_body() if has_body else b""
        host, _, port = self.upstream.partition(":")
        answer, out = await asyncio.open_connection(host, int(port))
        try:
            out.write(head + body)
            self.posts += first.startswith(b"POST ")
            while chunk := await answer.read(64 * 1024):
                if is_cut:
                    self.cuts -= 1
                    Visit(b"", answer, out).reset()
                    visit.writer.transport.abort()
                    return
                await visit.send(chunk)
        finally:
            out.close()


@contextmanager
def tls_front(base_url: str, *, cuts: int = 0) -> Iterator[TlsFront]:
    """Run the proxy before a broker, in a thread of its own."""
    with tempfile.TemporaryDirectory() as folder, start_blocking_portal() as portal:
        certificate = Path(folder) / "certificate.pem"
        certificate.write_bytes(make_certificate(["localhost"], ["127.0.0.1"]))
        front = TlsFront(upstream=urlsplit(base_url).netloc, certificate=certificate, cuts=cuts)
        with portal.wrap_async_context_manager(_serve(front)):
            yield front


@contextmanager
def fal_environment(front: TlsFront, key: str) -> Iterator[None]:
    """Set the environment of fal's client, which reads it when it is imported."""
    chosen = {
        "FAL_KEY": key,
        "FAL_QUEUE_RUN_HOST": f"{front.host}/fal",
        "FAL_RUN_HOST": f"{front.host}/fal/run",
        "SSL_CERT_FILE": str(front.certificate),
    }
    _forget_fal_client()
    with patch.dict(os.environ, chosen):
        try:
            yield
        finally:
            _forget_fal_client()


@contextmanager
def fal_sdk(front: TlsFront, key: str) -> Iterator[ModuleType]:
    """Import fal's client, unmodified, for a broker behind a proxy."""
    with fal_environment(front, key):
        yield import_module("fal_client")


def _forget_fal_client() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "fal_client"]:
        del sys.modules[name]


@asynccontextmanager
async def _serve(front: TlsFront) -> AsyncIterator[None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(front.certificate)
    server = await asyncio.start_server(front.visit, "127.0.0.1", 0, ssl=context)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
