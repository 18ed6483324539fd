"""Faults on request: their names, and one table of functions for each place where they apply.

Tags in a prompt select faults: `[mood:NAME]` or `[mood:NAME:VALUE]`, where VALUE is a number. They replace the faults
that the sandbox was started with. "The first VALUE …" counts per prompt on createTask, per task on recordInfo and per
URL on downloads; a restart resets these counts, but not the number of jobs of a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from starlette.responses import HTMLResponse, Response

from broker.sandbox.answers import envelope_response

Record = dict[str, Any]


class Fault(StrEnum):
    """A fault with its description and the default of its VALUE."""

    doc: str
    value_if_none: float

    def __new__(cls, name: str, doc: str = "", value_if_none: float = 0) -> Self:
        fault = str.__new__(cls, name)
        fault._value_ = name
        fault.doc, fault.value_if_none = doc, value_if_none
        return fault

    GOOD = "good", "no fault; as a tag it overrides the faults of the sandbox"

    # createTask
    CODE = "code", "HTTP 200 whose body says code VALUE; no job is made", 500
    STATUS = "status", "a real HTTP status VALUE; no job is made", 500
    LIMITED = "limited", "the first VALUE creates get 429 with Retry-After: 1", 1
    LIMITED_BARE = "limited_bare", "the first VALUE creates get 429 without Retry-After", 1
    DOWN = "down", "the first VALUE creates get 503 and a proxy's HTML page; no job is made", 1
    SILENT = "silent", "accepts the job and closes the connection without a response; the callback still arrives"
    SILENT_LOST = "silent_lost", "accepts the job and closes the connection without a response; no callback"
    SLOW_ANSWER = "slow_answer", "accepts the job at once and responds VALUE seconds later", 5
    EARLY = "early", "the job ends and its callback is answered before createTask responds"

    # envelopes of createTask, recordInfo and callbacks
    MESSAGE = "message", "envelopes say `message` instead of `msg`"
    CODE_STRING = "code_string", "envelopes carry the code as a string"

    # the work
    SLOW = "slow", "the job takes VALUE seconds", 5
    FAILED = "failed", "fails with failCode 500: Gemini could not generate an image"
    FLAGGED = "flagged", "fails with failCode 400: flagged as sensitive"
    INTERNAL = (
        "internal",
        "the first VALUE jobs of this prompt fail with failCode 500: Internal Error, try again later",
        1,
    )

    # recordInfo
    GRACE = "grace", "the first VALUE status reads get 422 recordInfo is null", 2
    GRACE_SECONDS = "grace_seconds", "status reads get 422 recordInfo is null for VALUE seconds after the create", 2
    UNKNOWN_STATE = "unknown_state", "the first VALUE status reads have an unknown state", 2
    BACKWARDS = "backwards", "after the first read with success, VALUE reads have generating again", 2

    # results, in records and callbacks alike
    NORESULT = "noresult", 'success with resultJson null (VALUE 0), "" (1), no resultUrls (2) or broken JSON (3)'
    MULTI = "multi", "VALUE result URLs", 3
    PARTIAL = "partial", "VALUE result URLs, the last one 404", 2
    PRIVATE_URL = "private_url", "the result URL is http://10.0.0.1/x.png"

    # callbacks
    LOST = "lost", "no callback"
    LATE = "late", "the callback arrives VALUE seconds after the end of the job", 5
    TWICE = "twice", "the callback arrives VALUE times", 2
    DISORDER = "disorder", "after the true callback a stale generating and a failure arrive"
    FORGED = "forged", "first an attacker's callback: no query in the URL, no signature, an evil result URL"
    UNSIGNED = "unsigned", "no signature headers although a key is set"
    BADSIGN = "badsign", "a wrong signature"
    STALE = "stale", "a valid signature with a timestamp VALUE seconds old", 3600
    CONTRADICTION = "contradiction", "the code means failure and the state success, or the reverse"
    TOPLEVEL = "toplevel", "taskId at the top level only"
    SNAKE = "snake", "data.task_id instead of data.taskId"

    # download of the result
    BIG = "big", "the image is noise, a PNG of at least VALUE MiB", 20
    GONE = "gone", "always 404"
    GONE_ONCE = "gone_once", "404 for the first VALUE downloads", 1
    EXPIRING = "expiring", "404, but download-url returns a link that works"
    HTML = "html", "200 with an HTML page"
    TRUNCATED = "truncated", "closes the connection halfway through the image, the first VALUE times (0: always)"
    DRIP = "drip", "the image is sent over VALUE seconds", 5
    WRONGTYPE = "wrongtype", "JPEG bytes in a .png, sent as application/octet-stream"
    REDIRECT = "redirect", "redirects to another path of the sandbox"
    REDIRECT_PRIVATE = "redirect_private", "redirects to http://169.254.169.254/"
    BOMB = "bomb", "a PNG of 50 KB with 400 million pixels"
    SVG = "svg", "an SVG with a script in it"
    CORRUPT = "corrupt", "an image whose second half is random"


Faults = Mapping[Fault, float]

_TAG = re.compile(r"\[mood:([^\]]*)\]")


class UnknownFault(ValueError):
    """A tag or setting with an unknown name or a value that is not a number."""


def parse_fault_tags(prompt: str) -> dict[Fault, float]:
    """Return the faults of a prompt, in the order of `Fault`."""
    return _parse_all(_TAG.findall(prompt))


def parse_fault_setting(setting: str) -> dict[Fault, float]:
    """Return the faults of a setting such as "late:30,twice"."""
    return _parse_all(filter(None, re.split(r"[,\s]+", setting)))


def _parse_all(words: Iterable[str]) -> dict[Fault, float]:
    found = dict(map(_parse_fault, words))
    return {fault: found[fault] for fault in Fault if fault in found}


def _parse_fault(word: str) -> tuple[Fault, float]:
    name, _, value = word.partition(":")
    fault = next((fault for fault in Fault if fault == name), None)
    if fault is None:
        raise UnknownFault(f"unknown mood {name!r}; there are {', '.join(Fault)}")
    if not re.fullmatch(r"(\d+(\.\d+)?)?", value, re.ASCII):
        raise UnknownFault(f"mood {name}: {value!r} is not a number")
    return fault, float(value or fault.value_if_none)


def select_faults(faults: Faults, table: Mapping[Fault, Any]) -> list[Fault]:
    """Return the faults that have an entry in the table."""
    return [fault for fault in faults if fault in table]


# createTask: (VALUE, earlier creates of this prompt with the same fault) → a response instead of a job

CreateFault = Callable[[float, int], Response | None]

PROXY_PAGE = "<html><head><title>503 Service Temporarily Unavailable</title></head><body><hr>nginx</body></html>"


def _respond_limited(value: float, earlier: int) -> Response | None:
    return (
        envelope_response(429, "Rate limit exceeded", status=429, headers={"retry-after": "1"})
        if earlier < value
        else None
    )


def _respond_limited_bare(value: float, earlier: int) -> Response | None:
    return envelope_response(429, "Rate limit exceeded", status=429) if earlier < value else None


def _respond_down(value: float, earlier: int) -> Response | None:
    return HTMLResponse(PROXY_PAGE, 503) if earlier < value else None


CREATE_FAULTS: dict[Fault, CreateFault] = {
    Fault.CODE: lambda value, _: envelope_response(int(value), f"refused with code {value:.0f}"),
    Fault.STATUS: lambda value, _: envelope_response(int(value), f"refused with status {value:.0f}", status=int(value)),
    Fault.LIMITED: _respond_limited,
    Fault.LIMITED_BARE: _respond_limited_bare,
    Fault.DOWN: _respond_down,
}


# Envelopes

ENVELOPE_FAULTS: dict[Fault, Callable[[Record], Record]] = {
    Fault.MESSAGE: lambda body: {("message" if key == "msg" else key): value for key, value in body.items()},
    Fault.CODE_STRING: lambda body: {**body, "code": str(body["code"])},
}


def apply_envelope_faults(body: Record, faults: Faults) -> Record:
    for fault in select_faults(faults, ENVELOPE_FAULTS):
        body = ENVELOPE_FAULTS[fault](body)
    return body


# Work: (VALUE, earlier jobs of this prompt) → a failure


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    code: str
    text: str


REFUSED_PROMPT = JobFailure(
    code="500",
    text="Gemini could not generate an image with the given prompt. Please try again with a different prompt.",
)
SENSITIVE = JobFailure(
    code="400", text="The input or output was flagged as sensitive. Please try again with different inputs."
)
TRY_AGAIN = JobFailure(code="500", text="Internal Error, Please try again later.")

JOB_FAULTS: dict[Fault, Callable[[float, int], JobFailure | None]] = {
    Fault.FAILED: lambda _value, _earlier: REFUSED_PROMPT,
    Fault.FLAGGED: lambda _value, _earlier: SENSITIVE,
    Fault.INTERNAL: lambda value, earlier: TRY_AGAIN if earlier < value else None,
}


# Result URLs in records and callbacks: (VALUE, function of the number of an image) → URLs


def _number_urls(value: float, url: Callable[[int], str]) -> list[str]:
    return [url(number) for number in range(int(value))]


RESULT_FAULTS: dict[Fault, Callable[[float, Callable[[int], str]], list[str]]] = {
    Fault.MULTI: _number_urls,
    Fault.PARTIAL: _number_urls,
    Fault.PRIVATE_URL: lambda _value, _url: ["http://10.0.0.1/x.png"],
}

NO_RESULTS: tuple[str | None, ...] = (None, "", '{"resultUrls":[]}', '{"resultUrls":["http')


def build_result_json(faults: Faults, url: Callable[[int], str]) -> str | None:
    """Return `resultJson` of a success; `url` returns the URL of the image with that number."""
    if Fault.NORESULT in faults:
        return NO_RESULTS[int(faults[Fault.NORESULT]) % len(NO_RESULTS)]
    fault = next((fault for fault in faults if fault in RESULT_FAULTS), None)
    return json.dumps({"resultUrls": RESULT_FAULTS[fault](faults[fault], url) if fault else [url(0)]})


# recordInfo: None responds "recordInfo is null"


@dataclass(frozen=True, kw_only=True)
class StatusRead:
    """One status read. reads, reads_since_end: counts including this one. age: seconds since the create."""

    record: Record
    reads: int
    reads_since_end: int
    age: float


def _unknown_state(value: float, read: StatusRead) -> Record:
    strange = {**read.record, "state": "contemplating", "resultJson": None}
    return strange if read.reads <= value else read.record


def _step_backwards(value: float, read: StatusRead) -> Record:
    back = {**read.record, "state": "generating", "resultJson": None, "completeTime": None}
    return back if 1 < read.reads_since_end <= 1 + value else read.record


STATUS_FAULTS: dict[Fault, Callable[[float, StatusRead], Record | None]] = {
    Fault.GRACE: lambda value, read: None if read.reads <= value else read.record,
    Fault.GRACE_SECONDS: lambda value, read: None if read.age < value else read.record,
    Fault.UNKNOWN_STATE: _unknown_state,
    Fault.BACKWARDS: _step_backwards,
}


def apply_status_faults(read: StatusRead, faults: Faults) -> Record | None:
    for fault in select_faults(faults, STATUS_FAULTS):
        record = STATUS_FAULTS[fault](faults[fault], read)
        if record is None:
            return None
        read = replace(read, record=record)
    return read.record
