"""Faults on request: their names, and their effects on responses, jobs, records and callbacks.

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
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

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


PROXY_PAGE = "<html><head><title>503 Service Temporarily Unavailable</title></head><body><hr>nginx</body></html>"


def respond_to_create(faults: Faults, earlier: int) -> Response | None:
    """Return a response instead of a job. earlier: earlier creates of this prompt."""
    if Fault.CODE in faults:
        return envelope_response(int(faults[Fault.CODE]), f"refused with code {faults[Fault.CODE]:.0f}")
    if Fault.STATUS in faults:
        status = int(faults[Fault.STATUS])
        return envelope_response(status, f"refused with status {status}", status=status)
    if earlier < faults.get(Fault.LIMITED, 0):
        return envelope_response(429, "Rate limit exceeded", status=429, headers={"retry-after": "1"})
    if earlier < faults.get(Fault.LIMITED_BARE, 0):
        return envelope_response(429, "Rate limit exceeded", status=429)
    return HTMLResponse(PROXY_PAGE, 503) if earlier < faults.get(Fault.DOWN, 0) else None


def apply_envelope_faults(body: Record, faults: Faults) -> Record:
    if Fault.MESSAGE in faults:
        body = {("message" if key == "msg" else key): value for key, value in body.items()}
    if Fault.CODE_STRING in faults:
        body = {**body, "code": str(body["code"])}
    return body


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


def requested_failure(faults: Faults, earlier: int) -> JobFailure | None:
    """Return the failure of a job. earlier: earlier jobs of its prompt."""
    if Fault.FAILED in faults:
        return REFUSED_PROMPT
    if Fault.FLAGGED in faults:
        return SENSITIVE
    return TRY_AGAIN if earlier < faults.get(Fault.INTERNAL, 0) else None


NO_RESULTS: tuple[str | None, ...] = (None, "", '{"resultUrls":[]}', '{"resultUrls":["http')


def build_result_json(faults: Faults, url: Callable[[int], str]) -> str | None:
    """Return `resultJson` of a success; `url` returns the URL of the image with that number."""
    if Fault.NORESULT in faults:
        return NO_RESULTS[int(faults[Fault.NORESULT]) % len(NO_RESULTS)]
    count = int(faults.get(Fault.MULTI, faults.get(Fault.PARTIAL, 1)))
    is_private = Fault.PRIVATE_URL in faults
    return json.dumps({"resultUrls": ["http://10.0.0.1/x.png"] if is_private else [*map(url, range(count))]})


def apply_status_faults(
    record: Record, faults: Faults, *, reads: int, reads_since_end: int, age: float
) -> Record | None:
    """Return the record as recordInfo shows it; None for "recordInfo is null".

    reads, reads_since_end: counts including this one. age: seconds since the create.
    """
    if reads <= faults.get(Fault.GRACE, 0) or age < faults.get(Fault.GRACE_SECONDS, 0):
        return None
    if reads <= faults.get(Fault.UNKNOWN_STATE, 0):
        record = {**record, "state": "contemplating", "resultJson": None}
    if 1 < reads_since_end <= 1 + faults.get(Fault.BACKWARDS, 0):
        record = {**record, "state": "generating", "resultJson": None, "completeTime": None}
    return record


@dataclass(frozen=True, kw_only=True)
class PlannedCallback:
    """A callback to send."""

    kind: str
    url: str
    body: Record
    delay: float = 0.0
    """Seconds after the end of the job."""
    signature: Literal["valid", "none", "wrong"] = "valid"
    age: float = 0.0
    """Seconds of the signature's timestamp."""
    is_retried: bool = True


def plan_callbacks(true: PlannedCallback, faults: Faults, evil_url: str) -> list[PlannedCallback]:
    """Return the callbacks of a finished job in the order of sending. evil_url: result of a forged callback."""
    call = replace(true, delay=faults.get(Fault.LATE, 0.0), age=faults.get(Fault.STALE, 0.0))
    if faults.keys() & {Fault.UNSIGNED, Fault.BADSIGN}:
        call = replace(call, signature="none" if Fault.UNSIGNED in faults else "wrong")
    is_lost = bool(faults.keys() & {Fault.SILENT_LOST, Fault.LOST})
    calls = [] if is_lost else [call] * int(faults.get(Fault.TWICE, 1))
    if calls and Fault.DISORDER in faults:
        failure = {"state": "fail", "resultJson": None, "failCode": TRY_AGAIN.code, "failMsg": TRY_AGAIN.text}
        calls += [
            replace(call, kind="generating", body=_change_data(call.body, 200, state="generating", resultJson=None)),
            replace(call, kind="failure", body=_change_data(call.body, 501, **failure)),
        ]
    if Fault.FORGED in faults:
        calls.insert(0, _forge_callback(true, evil_url))
    return [replace(call, body=_apply_callback_faults(call.body, faults)) for call in calls]


def _forge_callback(call: PlannedCallback, evil_url: str) -> PlannedCallback:
    """Return the callback of an attacker with a task id, but without token and key; it is sent once."""
    body = _change_data(call.body, 200, state="success", resultJson=json.dumps({"resultUrls": [evil_url]}))
    url = urlunsplit(urlsplit(call.url)._replace(query=""))
    return replace(call, kind="forged", url=url, body=body, signature="none", is_retried=False)


def _change_data(body: Record, code: int, **changes: Any) -> Record:
    return {**body, "code": code, "data": {**body["data"], **changes}}


def _apply_callback_faults(body: Record, faults: Faults) -> Record:
    data = dict(body["data"])
    if Fault.CONTRADICTION in faults:
        body = {**body, "code": 501 if body["code"] == 200 else 200}
    if Fault.TOPLEVEL in faults:
        body = {**body, "taskId": data.pop("taskId"), "data": data}
    elif Fault.SNAKE in faults:
        data["task_id"] = data.pop("taskId")
        body = {**body, "data": data}
    return apply_envelope_faults(body, faults)
