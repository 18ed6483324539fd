"""Answers in place of a broker that does not run, for the moment in which its public address is tried."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from broker.probing import GREETING
from webhooks.tokens import ChallengeResponse

HEAD_SECONDS: Final = 5.0
_QUESTION: Final = re.compile(rb"GET " + GREETING.encode() + rb"\?probe=([0-9a-f]{32}) HTTP/1\.[01]\r\n")


@asynccontextmanager
async def standing_in(host: str, port: int, presence: ChallengeResponse) -> AsyncIterator[None]:
    """Knows one question, and ends with the block. Raises OSError where the port cannot be had."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, EOFError, asyncio.LimitOverrunError, TimeoutError):
                async with asyncio.timeout(HEAD_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, presence))
                await writer.drain()
        finally:
            writer.close()

    visits: set[asyncio.Task[None]] = set()

    def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.create_task(answer(reader, writer))
        visits.add(visit)
        visit.add_done_callback(visits.discard)

    server = await asyncio.start_server(welcome, host, port)
    try:
        yield
    finally:
        server.close()
        for visit in list(visits):
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        await server.wait_closed()


def _answer(head: bytes, presence: ChallengeResponse) -> bytes:
    question = _QUESTION.match(head)
    shown = presence.answer(question[1].decode()) if question else None
    status, body = ("200 OK", f'{{"status":"ok","probe":"{shown}"}}') if shown else ("404 Not Found", "{}")
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()
