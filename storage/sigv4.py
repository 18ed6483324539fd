"""AWS Signature Version 4: a request and a key make the headers that prove who sends it. No I/O.

Only for the two calls that obstore has not (storage/s3.py). The steps and their names are those of
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from typing import Final
from urllib.parse import quote

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Key:
    """Who signs. Only the id may be shown."""

    id: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def signed_headers(
    key: Key,
    *,
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    at: datetime,
    region: str,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """All headers of a request without a body. path: before quoting. at: in UTC. more: further headers to sign."""
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp, **(more or {})}
    if key.token is not None:
        headers["x-amz-security-token"] = key.token
    names = ";".join(sorted(headers))
    canonical = _canonical_request(method, path, query, headers, names)
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = _hmac(_signing_key(key.secret, scope), to_sign).hex()
    proof = f"{ALGORITHM} Credential={key.id}/{scope},SignedHeaders={names},Signature={signature}"
    return {**headers, "authorization": proof}


def quoted_path(path: str) -> str:
    return quote(path, safe="/-_.~")


def quoted_query(query: Mapping[str, str]) -> str:
    """Sorted, as it is signed; it must be sent so, too."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def _canonical_request(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], names: str) -> str:
    lines = [f"{name}:{headers[name].strip()}" for name in sorted(headers)]
    return "\n".join([method, quoted_path(path), quoted_query(query), *lines, "", names, EMPTY_SHA256])


def _signing_key(secret: str, scope: str) -> bytes:
    return reduce(_hmac, scope.split("/"), f"AWS4{secret}".encode())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
