"""Faults on request: their names, and their effects that do not depend on a dialect.

Tags in a prompt select faults: `[mood:NAME]` or `[mood:NAME:VALUE]`, where VALUE is a number. They replace the faults
that the sandbox was started with. "The first VALUE …" counts per prompt on submissions, per job on status reads and per
URL on downloads; a restart resets these counts, but not the number of jobs of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from starlette.responses import HTMLResponse, Response

from broker.sandbox.orders import RejectedRequest


class FaultName(StrEnum):
    """A fault with its description and the default of its VALUE."""

    doc: str
    value_if_none: float

    def __new__(cls, name: str, doc: str = "", value_if_none: float = 0) -> Self:
        fault = str.__new__(cls, name)
        fault._value_ = name
        fault.doc, fault.value_if_none = doc, value_if_none
        return fault


class Fault(FaultName):
    """The faults that any dialect can have; a dialect adds its own in an enumeration of its own."""

    GOOD = "good", "no fault; as a tag it overrides the faults of the sandbox"

    # the submission
    STATUS = "status", "a real HTTP status VALUE; no job is made", 500
    LIMITED = "limited", "the first VALUE creates get 429 with Retry-After: 1", 1
    LIMITED_BARE = "limited_bare", "the first VALUE creates get 429 without Retry-After", 1
    DOWN = "down", "the first VALUE creates get 503 and a proxy's HTML page; no job is made", 1
    SILENT = "silent", "accepts the job and closes the connection without a response; the callback still arrives"
    SILENT_LOST = "silent_lost", "accepts the job and closes the connection without a response; no callback"
    SLOW_ANSWER = "slow_answer", "accepts the job at once and responds VALUE seconds later", 5
    EARLY = "early", "the job ends and its callback is answered before the submission is"

    # the work
    SLOW = "slow", "the job takes VALUE seconds", 5
    FAILED = "failed", "fails: Gemini could not generate an image"
    FLAGGED = "flagged", "fails: flagged as sensitive"
    INTERNAL = (
        "internal",
        "the first VALUE jobs of this prompt fail: Internal Error, try again later",
        1,
    )

    # status reads
    GRACE = "grace", "the job is unknown to the first VALUE status reads", 2
    GRACE_SECONDS = "grace_seconds", "the job is unknown to status reads for VALUE seconds after the submission", 2
    UNKNOWN_STATE = "unknown_state", "the first VALUE status reads have an unknown state", 2
    BACKWARDS = "backwards", "after the first read with success, VALUE reads say again that it runs", 2

    # results, in records and callbacks alike
    NORESULT = "noresult", "success without a result, in as many ways (VALUE from 0) as the dialect has"
    MULTI = "multi", "VALUE result URLs", 3
    PARTIAL = "partial", "VALUE result URLs, the last one 404", 2
    PRIVATE_URL = "private_url", "the result URL is http://10.0.0.1/x.png"

    # callbacks
    LOST = "lost", "no callback"
    LATE = "late", "the callback arrives VALUE seconds after the end of the job", 5
    TWICE = "twice", "the callback arrives VALUE times", 2
    DISORDER = "disorder", "after the true callback a stale one of a running job and a failure arrive"
    FORGED = "forged", "first an attacker's callback: no query in the URL, no signature, an evil result URL"
    UNSIGNED = "unsigned", "no signature headers although a key is set"
    BADSIGN = "badsign", "a wrong signature"
    STALE = "stale", "a valid signature with a timestamp VALUE seconds old", 3600

    # download of the result
    BIG = "big", "the image is noise, a PNG of at least VALUE MiB", 20
    GONE = "gone", "always 404"
    GONE_ONCE = "gone_once", "404 for the first VALUE downloads", 1
    EXPIRING = "expiring", "404, but a fresh link works"
    HTML = "html", "200 with an HTML page"
    TRUNCATED = "truncated", "closes the connection halfway through the image, the first VALUE times (0: always)"
    DRIP = "drip", "the image is sent over VALUE seconds", 5
    WRONGTYPE = "wrongtype", "JPEG bytes in a .png, sent as application/octet-stream"
    REDIRECT = "redirect", "redirects to another path of the sandbox"
    REDIRECT_PRIVATE = "redirect_private", "redirects to http://169.254.169.254/"
    BOMB = "bomb", "a PNG of 50 KB with 400 million pixels"
    SVG = "svg", "an SVG with a script in it"
    CORRUPT = "corrupt", "an image whose second half is random"


JOB_FAULTS: Final = tuple(fault for fault in Fault if fault is not Fault.EXPIRING)
"""Those of an API with jobs, callbacks and result URLs; EXPIRING needs one for fresh links as well."""

HELD_FAULTS: Final = (
    Fault.GOOD,
    Fault.STATUS,
    Fault.LIMITED,
    Fault.LIMITED_BARE,
    Fault.DOWN,
    Fault.SILENT,
    Fault.SLOW,
    Fault.FAILED,
    Fault.FLAGGED,
    Fault.INTERNAL,
    Fault.NORESULT,
)
"""Those of a dialect that answers an order with the image, whatever else it has."""

Faults = Mapping[str, float]
"""The VALUE of each requested fault."""

_TAG = re.compile(r"\[mood:([^\]]*)\]")


class UnknownFault(ValueError):
    """A tag or setting with an unknown name or a value that is not a number."""


def parse_fault_tags(prompt: str, known: Sequence[FaultName]) -> dict[str, float]:
    """Return the faults of a prompt, in the order of `known`."""
    return _parse_all(_TAG.findall(prompt), known)


def parse_fault_setting(setting: str, known: Sequence[FaultName]) -> dict[str, float]:
    """Return the faults of a setting such as "late:30,twice"."""
    return _parse_all(filter(None, re.split(r"[,\s]+", setting)), known)


def _parse_all(words: Iterable[str], known: Sequence[FaultName]) -> dict[str, float]:
    found = dict(_parse_fault(word, known) for word in words)
    return {fault.value: found[fault] for fault in known if fault in found}


def _parse_fault(word: str, known: Sequence[FaultName]) -> tuple[str, float]:
    name, _, value = word.partition(":")
    fault = next((fault for fault in known if fault == name), None)
    if fault is None:
        raise UnknownFault(f"unknown mood {name!r}; there are {', '.join(known)}")
    if not re.fullmatch(r"(\d+(\.\d+)?)?", value, re.ASCII):
        raise UnknownFault(f"mood {name}: {value!r} is not a number")
    return fault.value, float(value or fault.value_if_none)


PROXY_PAGE = "<html><head><title>503 Service Temporarily Unavailable</title></head><body><hr>nginx</body></html>"


def respond_to_create(faults: Faults, earlier: int) -> Response | None:
    """Return a response instead of a job, or raise `RejectedRequest`. earlier: earlier submissions of this prompt."""
    if Fault.STATUS in faults:
        status = int(faults[Fault.STATUS])
        raise RejectedRequest(status, f"refused with status {status}", status=status)
    if earlier < faults.get(Fault.LIMITED, 0):
        raise RejectedRequest(429, "Rate limit exceeded", status=429, headers={"retry-after": "1"})
    if earlier < faults.get(Fault.LIMITED_BARE, 0):
        raise RejectedRequest(429, "Rate limit exceeded", status=429)
    return HTMLResponse(PROXY_PAGE, 503) if earlier < faults.get(Fault.DOWN, 0) else None


class FailureKind(StrEnum):
    """The ways in which a job fails; each dialect has a code for them."""

    NO_IMAGE = "no_image"
    FLAGGED = "flagged"
    INTERNAL = "internal"
    REFERENCE = "reference"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """The failure of a job, in the words of the model's vendor."""

    kind: FailureKind
    text: str


REFUSED_PROMPT = JobFailure(
    kind=FailureKind.NO_IMAGE,
    text="Gemini could not generate an image with the given prompt. Please try again with a different prompt.",
)
SENSITIVE = JobFailure(
    kind=FailureKind.FLAGGED,
    text="The input or output was flagged as sensitive. Please try again with different inputs.",
)
TRY_AGAIN = JobFailure(kind=FailureKind.INTERNAL, text="Internal Error, Please try again later.")
CANCELED = JobFailure(kind=FailureKind.CANCELED, text="canceled")


def requested_failure(faults: Faults, earlier: int) -> JobFailure | None:
    """Return the failure of a job. earlier: earlier jobs of its prompt."""
    if Fault.FAILED in faults:
        return REFUSED_PROMPT
    if Fault.FLAGGED in faults:
        return SENSITIVE
    return TRY_AGAIN if earlier < faults.get(Fault.INTERNAL, 0) else None
