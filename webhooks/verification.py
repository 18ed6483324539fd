"""Verification of incoming callbacks: the decision about one, and what of it is stored. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from webhooks.redaction import Redactor
from webhooks.signatures.base import Proof
from webhooks.strict_json import DuplicateName, read_json

MAX_BODY_BYTES: Final = 256 * 1024
MIN_STORED_BODY_BYTES: Final = 2 * 1024
"""Stored of a body that proves nothing, or is too large."""
MAX_HEADER_LENGTH: Final = 500
"""Characters stored of one header."""
MAX_QUERY_LENGTH: Final = 100
"""Characters stored of one query parameter."""
_STORED_HEADERS: Final = frozenset({"content-type", "content-length", "content-encoding", "user-agent"})
_STORED_PREFIXES: Final = ("webhook-", "x-")
_SECRET_HEADER: Final = re.compile(r"authorization|cookie|secret|token|key")


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


class IncomingCallback(NamedTuple):
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


class Evidence(NamedTuple):
    """All facts that `decide` reads; stored with the callback, so that a replay decides again.

    A tuple, because what follows from it is kept by it, and the hash of a dataclass takes long.
    """

    token: Proof = Proof.NONE
    signature: Proof = Proof.NONE
    signature_required: bool = False
    """True if a webhook key is configured and the callback carries no token."""
    trusted: bool = False
    known: bool = False
    """True if a task belongs to the callback."""

    @property
    def is_proven(self) -> bool:
        """True if the provider or a trusted caller sent it, whatever its content."""
        proofs = {self.token, self.signature}
        return Proof.WRONG not in proofs and (self.trusted or proofs != {Proof.NONE})

    def to_json(self) -> str:
        return _evidence_json(self)

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        values = json.loads(text)
        return cls(**values | {name: Proof(values[name]) for name in ("token", "signature")})


@cache  # there are some hundred different ones
def _evidence_json(evidence: Evidence) -> str:
    return json.dumps(evidence._asdict())


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


@cache
def decide(evidence: Evidence) -> Decision:
    """Return what the evidence allows; the first matching rule decides."""
    token, signature = evidence.token, evidence.signature
    is_verified = Proof.BODY_VERIFIED in {token, signature}
    uncovered = "signed, but the signature does not cover the body, or the body names no job of the task"
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


def stored_headers(headers: Mapping[str, str], redactor: Redactor) -> str:
    """Return the headers to store, as JSON, without secrets."""
    stored = {
        name: value
        for name, value in headers.items()
        if name in _STORED_HEADERS or (name.startswith(_STORED_PREFIXES) and not _SECRET_HEADER.search(name))
    }
    return _redacted_json(stored, MAX_HEADER_LENGTH, redactor)


def stored_query(query: Mapping[str, str], redactor: Redactor) -> str:
    """Return task and attempt of the query, as JSON; the token and unknown parameters are left out."""
    stored = {name: query[name] for name in ("task", "attempt") if name in query}
    return _redacted_json(stored, MAX_QUERY_LENGTH, redactor)


def _redacted_json(values: Mapping[str, str], max_length: int, redactor: Redactor) -> str:
    """Return texts as JSON without secrets: at once, unless one is to be cut, which is done last."""
    if values and max(map(len, values.values())) <= max_length:
        return redactor.redact(_texts_json(values))
    return _texts_json({redactor.redact(name): redactor.redact(value)[:max_length] for name, value in values.items()})


def _texts_json(texts: Mapping[str, str]) -> str:
    """Return texts as JSON: an encoder of any JSON is made for each call, which takes longer."""
    members = [f"{encode_basestring(name)}: {encode_basestring(text)}" for name, text in texts.items()]
    return f"{{{', '.join(members)}}}"


def stored_body(
    body: bytes, redactor: Redactor, *, token: str | None = None, is_proven: bool = False
) -> tuple[str, bool]:
    """Return the body as text, with every secret masked, and whether it was truncated.

    Providers repeat the callback URL, token included, and some repeat the whole request with our key. token: the one
    of this request. is_proven: store it whole, unless it is too large; readable JSON then stays readable.
    NUL is replaced, because Postgres cannot store it.
    """
    max_bytes = MAX_BODY_BYTES if is_proven and len(body) <= MAX_BODY_BYTES else MIN_STORED_BODY_BYTES
    text = redactor.redact(body.decode("utf-8", "replace").replace("\x00", "\ufffd"), token)
    # truncated last: half a secret would not be recognized
    stored = text.encode()[:max_bytes].decode("utf-8", "ignore")
    return stored, len(stored) < len(text) or len(body) > MAX_BODY_BYTES
