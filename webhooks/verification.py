"""Verification of incoming callbacks: the decision about one, and what of it is stored. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from webhooks.signatures.base import Proof
from webhooks.strict_json import DuplicateName, read_json

MAX_BODY_BYTES: Final = 256 * 1024
MIN_TOKEN_LENGTH: Final = 16
"""Shorter query values are not tokens of the broker, and could be any word of a body."""
_STORED_HEADERS: Final = re.compile(r"content-type|content-length|content-encoding|user-agent|webhook-.*|x-.*")
_SECRET_HEADERS: Final = re.compile(r".*(authorization|cookie|secret|token|key).*")
_TOKEN: Final = re.compile(r"token(=|\\+u003d|%3d|%253d)[0-9a-f]{32}", re.IGNORECASE)
"""A token as it appears in a URL, in JSON with HTML-safe escapes, and in a URL within a URL."""


class Verification(StrEnum):
    """The effect that a callback may have."""

    ACCEPT = "accept"
    """Its body is applied to the task."""
    RECHECK = "recheck"
    """The task becomes due now, and the provider is polled."""
    REJECT = "reject"
    UNKNOWN = "unknown"
    """No task belongs to it."""
    MALFORMED = "malformed"


@dataclass(frozen=True, kw_only=True)
class IncomingCallback:
    """One request to a callback path, as received."""

    provider: str
    """Name of the provider whose path was called."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes
    trusted: bool
    """True if the request carries a caller's credentials."""
    encoded: bool = False
    """True if the body has a Content-Encoding, which is not decoded."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All facts that `decide` reads; stored with the callback, so that a replay decides again."""

    token: Proof = Proof.NONE
    signature: Proof = Proof.NONE
    signature_required: bool = False
    """True if a webhook key is configured and the callback carries no token."""
    trusted: bool = False
    known: bool = False
    """True if a task belongs to the callback."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        values = json.loads(text)
        return cls(**values | {name: Proof(values[name]) for name in ("token", "signature")})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The outcome of a verification."""

    verification: Verification
    status: int
    """HTTP status of the response."""
    reason: str
    """A sentence for the inbox."""


class MalformedBody(Exception):
    """The body is not an acceptable JSON document."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.decision = Decision(verification=Verification.MALFORMED, status=status, reason=reason)


def parse_body(body: bytes, *, encoded: bool = False) -> Any:
    """Return the JSON document. encoded: the body has a Content-Encoding. Raises `MalformedBody`."""
    if encoded:
        raise MalformedBody(400, "its body has a Content-Encoding: send it as it is")
    if len(body) > MAX_BODY_BYTES:
        raise MalformedBody(413, f"the body is larger than {MAX_BODY_BYTES // 1024} KiB")
    try:
        return read_json(body)
    except DuplicateName as error:
        raise MalformedBody(400, "an object in the body names a member twice") from error
    except ValueError as error:
        raise MalformedBody(400, "the body is not readable JSON") from error


def decide(evidence: Evidence) -> Decision:
    """Return what the evidence allows; the first matching rule decides."""
    token, signature = evidence.token, evidence.signature
    is_verified = Proof.BODY_VERIFIED in {token, signature}
    uncovered = "signed, but the signature does not cover the body"
    missing = "neither token nor signature, though a webhook key is set"
    rules = (
        (token == Proof.WRONG, Verification.REJECT, 401, "its token is wrong"),
        (signature == Proof.WRONG, Verification.REJECT, 401, "its signature is wrong or too old"),
        (not evidence.known, Verification.UNKNOWN, 404, "no task belongs to it"),
        (is_verified, Verification.ACCEPT, 200, "its token or signature is valid"),
        (signature == Proof.SENDER_VERIFIED, Verification.RECHECK, 202, uncovered),
        (evidence.signature_required, Verification.REJECT, 401, missing),
        (evidence.trusted, Verification.ACCEPT, 200, "from a trusted caller"),
        (True, Verification.RECHECK, 202, "it carries no proof of its origin"),
    )
    verification, status, reason = next(rule[1:] for rule in rules if rule[0])
    return Decision(verification=verification, status=status, reason=reason)


def stored_headers(headers: Mapping[str, str]) -> str:
    """Return the headers to store, as JSON, without secrets."""
    stored = {
        name: value[:500]
        for name, value in headers.items()
        if _STORED_HEADERS.fullmatch(name) and not _SECRET_HEADERS.fullmatch(name)
    }
    return json.dumps(stored, ensure_ascii=False)


def stored_query(query: Mapping[str, str]) -> str:
    """Return task and attempt of the query, as JSON; the token and unknown parameters are left out."""
    return json.dumps({name: query[name][:100] for name in ("task", "attempt") if name in query}, ensure_ascii=False)


def stored_body(body: bytes, token: str | None = None) -> str:
    """Return the body as text, truncated to `MAX_BODY_BYTES`, with every token masked.

    Providers repeat the callback URL, token included. token: the one of this request, masked in any spelling.
    NUL is replaced, because Postgres cannot store it.
    """
    text = body[:MAX_BODY_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")
    if token and len(token) >= MIN_TOKEN_LENGTH:
        text = text.replace(token, "[hidden]")
    return _TOKEN.sub(r"token\1[hidden]", text)
