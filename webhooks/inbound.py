"""A callback from raw bytes to a verdict, and into the inbox. Fast: it reads, judges, writes one row, and is done."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from webhooks.documents import read_json
from webhooks.proofs import Proof

MAX_BODY_BYTES: Final = 256 * 1024
SHORTEST_TOKEN: Final = 16
"""Shorter ones are none of ours, and could be any word of a body."""
_KEPT_HEADERS: Final = re.compile(r"content-type|content-length|content-encoding|user-agent|webhook-.*|x-.*")
_TOKEN: Final = re.compile(r"token(=|\\+u003d|%3d|%253d)[0-9a-f]{32}", re.IGNORECASE)
"""As it stands in an address, in JSON that is careful about HTML, and in an address within an address."""
_SECRET_HEADERS: Final = re.compile(r".*(authorization|cookie|secret|token|key).*")


class Verdict(StrEnum):
    """What we do with a callback. BELIEVE: its body is news. ASK: ask the provider now. The others change nothing."""

    BELIEVE = "believe"
    ASK = "ask"
    REFUSE = "refuse"
    UNKNOWN = "unknown"
    MALFORMED = "malformed"


@dataclass(frozen=True, kw_only=True)
class Callback:
    """One request to a webhook path, as it came.

    provider: from the path. query: single values. headers: lower-case names. trusted: whether the caller is. encoded:
    the body is compressed, which nobody undoes here.
    """

    provider: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    trusted: bool
    encoded: bool = False


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """All that decides about a callback that can be read; kept beside it, so that it can be judged again.

    signature_required: a webhook key is set, and there is no token. known: whether a task goes with it.
    """

    token: Proof = Proof.NONE
    signature: Proof = Proof.NONE
    signature_required: bool = False
    trusted: bool = False
    known: bool = False

    def kept(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, kept: str) -> Proofs:
        """Read what `kept` returned."""
        values = json.loads(kept)
        return cls(**values | {name: Proof(values[name]) for name in ("token", "signature")})


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """verdict: what to do. status: our HTTP answer. reason: for the inbox, in words."""

    verdict: Verdict
    status: int
    reason: str


class MalformedBody(Exception):
    """Not a JSON document that we would read. status: the HTTP answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def parse(body: bytes) -> Any:
    """The JSON document of a callback. Raises `MalformedBody`."""
    if len(body) > MAX_BODY_BYTES:
        raise MalformedBody(413, f"the body is larger than {MAX_BODY_BYTES // 1024} KiB")
    try:
        return read_json(body)
    except ValueError as error:
        raise MalformedBody(400, "the body is not readable JSON") from error


def read(callback: Callback) -> Any:
    """The JSON document of a callback. Raises `MalformedBody`."""
    if callback.encoded:
        raise MalformedBody(400, "its body has a Content-Encoding: send it as it is")
    return parse(callback.body)


def judge(*, token: Proof, signature: Proof, signature_required: bool, trusted: bool, known: bool) -> Judgement:
    """What the proofs allow; the first rule that fits decides. `known`: whether a task goes with the callback."""
    rules = (
        (token == Proof.WRONG, Verdict.REFUSE, 401, "its token is wrong"),
        (signature == Proof.WRONG, Verdict.REFUSE, 401, "its signature is wrong or too old"),
        (not known, Verdict.UNKNOWN, 404, "no task goes with it"),
        (Proof.BODY in {token, signature}, Verdict.BELIEVE, 200, "its token or signature is right"),
        (signature == Proof.SENDER, Verdict.ASK, 202, "signed, but the signature does not cover the body"),
        (signature_required, Verdict.REFUSE, 401, "neither token nor signature, though a webhook key is set"),
        (trusted, Verdict.BELIEVE, 200, "from a trusted caller"),
        (True, Verdict.ASK, 202, "nothing proves it"),
    )
    verdict, status, reason = next(rule[1:] for rule in rules if rule[0])
    return Judgement(verdict=verdict, status=status, reason=reason)


def kept_headers(headers: Mapping[str, str]) -> str:
    """The headers worth keeping, as JSON, without secrets."""
    kept = {
        name: value[:500]
        for name, value in headers.items()
        if _KEPT_HEADERS.fullmatch(name) and not _SECRET_HEADERS.fullmatch(name)
    }
    return json.dumps(kept, ensure_ascii=False)


def kept_query(query: Mapping[str, str]) -> str:
    """Which task and attempt it named; the token, and all we did not put there, stays out."""
    return json.dumps({name: query[name][:100] for name in ("task", "attempt") if name in query}, ensure_ascii=False)


def task_in(kept: str) -> str | None:
    """The task that a kept query names."""
    task = json.loads(kept).get("task")
    return task if isinstance(task, str) else None


def kept_body(body: bytes, token: str | None = None) -> str:
    """As text, cut where it is larger than we read, without the tokens that a provider repeats from our address.

    token: the one it came with, hidden however it is written there.

    NUL cannot be stored everywhere.
    """
    text = body[:MAX_BODY_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")
    if token and len(token) >= SHORTEST_TOKEN:
        text = text.replace(token, "[hidden]")
    return _TOKEN.sub(r"token\1[hidden]", text)
