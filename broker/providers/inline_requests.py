"""JSON requests that contain reference images as base64: sent piece by piece, never whole in memory."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from broker.errors import NotSent
from broker.net.http_request import StreamedBody
from broker.orders import Reference


def stream_body(build: Callable[[Sequence[str]], Mapping[str, Any]], references: Sequence[Reference]) -> StreamedBody:
    """Return the body that `build` makes of the base64 of each reference.

    build: gets a token in place of each reference, and puts each once into a string of the body, in any order.
    """
    tokens = [secrets.token_hex(16) for _ in references]
    text = json.dumps(build(tokens), ensure_ascii=False, separators=(",", ":"))
    sent = [references[position] for position in sorted(range(len(tokens)), key=lambda n: text.index(tokens[n]))]
    *texts, end = [one.encode("utf-8", "replace") for one in re.split("|".join(tokens) or "$^", text)]
    size = sum(map(len, texts)) + sum(_encoded_size(one.size) for one in sent) + len(end)
    return StreamedBody(size=size, chunks=_chunks(texts, sent, end))


def _encoded_size(size: int) -> int:
    return -(-size // 3) * 4


async def _chunks(texts: Sequence[bytes], references: Sequence[Reference], end: bytes) -> AsyncGenerator[bytes]:
    for text, reference in zip(texts, references, strict=True):
        yield text
        rest, size = b"", 0
        async for chunk in reference.read():
            size += len(chunk)
            whole = len(rest + chunk) // 3 * 3
            piece, rest = (rest + chunk)[:whole], (rest + chunk)[whole:]
            yield base64.b64encode(piece)
        yield base64.b64encode(rest)
        if size != reference.size:
            raise NotSent("a reference image has another size than when it was stored", permanent=True)
    yield end
