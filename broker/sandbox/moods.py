"""Every way to break a promise, as data: the names, and for each place where it shows a table of small functions.

A prompt asks for moods with tags: `[mood:NAME]` or `[mood:NAME:VALUE]`, as many as wanted; VALUE is a number. A prompt
with a tag is free of the mood the sandbox was started in. "The first VALUE …" counts per prompt on createTask, per task
on recordInfo and per URL on downloads; a restart forgets these counts, but not how many jobs a prompt had.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio import to_thread
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from broker.sandbox import painter
from broker.sandbox.answers import HangUp, Picture, reply, stream

Record = dict[str, Any]


class Mood(StrEnum):
    """Name, what it does, and the VALUE a tag without one means."""

    doc: str
    value_if_none: float

    def __new__(cls, name: str, doc: str = "", value_if_none: float = 0) -> Self:
        mood = str.__new__(cls, name)
        mood._value_ = name
        mood.doc, mood.value_if_none = doc, value_if_none
        return mood

    GOOD = "good", "keeps every promise; as a tag it overrules the mood of the sandbox"

    # createTask
    CODE = "code", "HTTP 200 whose body says code VALUE; no job is made", 500
    STATUS = "status", "a real HTTP status VALUE; no job is made", 500
    LIMITED = "limited", "the first VALUE creates get 429 with Retry-After: 1", 1
    LIMITED_BARE = "limited_bare", "the first VALUE creates get 429 without Retry-After", 1
    DOWN = "down", "the first VALUE creates get 503 and a proxy's HTML page; no job is made", 1
    SILENT = "silent", "accepts the job and hangs up without an answer; the callback still comes"
    SILENT_LOST = "silent_lost", "accepts the job and hangs up without an answer; no callback either"
    SLOW_ANSWER = "slow_answer", "accepts the job at once and answers VALUE seconds later", 5
    EARLY = "early", "the job is over and its callback answered before createTask is"

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
    UNKNOWN_STATE = "unknown_state", "the first VALUE status reads name a state nobody knows", 2
    BACKWARDS = "backwards", "after the first read that says success VALUE reads say generating again", 2

    # results, in records and callbacks alike
    NORESULT = "noresult", 'success with resultJson null (VALUE 0), "" (1), no resultUrls (2) or broken JSON (3)'
    MULTI = "multi", "VALUE result URLs", 3
    PARTIAL = "partial", "VALUE result URLs, the last one dead", 2
    PRIVATE_URL = "private_url", "the result URL is http://10.0.0.1/x.png"

    # callbacks
    LOST = "lost", "no callback"
    LATE = "late", "the callback comes VALUE seconds after the end of the job", 5
    TWICE = "twice", "the callback comes VALUE times", 2
    DISORDER = "disorder", "after the true callback come a stale generating and a failure"
    FORGED = "forged", "first an attacker's callback: no query in the URL, no signature, an evil result URL"
    UNSIGNED = "unsigned", "no signature headers although a key is set"
    BADSIGN = "badsign", "a wrong signature"
    STALE = "stale", "a right signature with a timestamp VALUE seconds old", 3600
    CONTRADICTION = "contradiction", "the code says failure and the state success, or the other way round"
    TOPLEVEL = "toplevel", "taskId at the top level only"
    SNAKE = "snake", "data.task_id instead of data.taskId"

    # download of the result
    BIG = "big", "the picture is noise, a PNG of at least VALUE MiB", 20
    GONE = "gone", "404 for ever"
    GONE_ONCE = "gone_once", "404 for the first VALUE downloads", 1
    EXPIRING = "expiring", "404, but download-url gives a link that works"
    HTML = "html", "200 with an HTML page"
    TRUNCATED = "truncated", "hangs up halfway through the picture, the first VALUE times (0: always)"
    DRIP = "drip", "the picture trickles for VALUE seconds", 5
    WRONGTYPE = "wrongtype", "JPEG bytes in a .png, sent as application/octet-stream"
    REDIRECT = "redirect", "redirects to another path of the sandbox"
    REDIRECT_PRIVATE = "redirect_private", "redirects to http://169.254.169.254/"
    BOMB = "bomb", "a PNG of 50 KB with 400 million pixels"
    SVG = "svg", "an SVG with a script in it"
    CORRUPT = "corrupt", "a picture whose second half is rubbish"


Moods = Mapping[Mood, float]

_TAG = re.compile(r"\[mood:([^\]]*)\]")


class UnknownMood(ValueError):
    """A tag or a setting that names no mood, or no number as its value."""


def tagged(prompt: str) -> dict[Mood, float]:
    """The moods a prompt asks for, in the order of `Mood`."""
    return _sorted(_TAG.findall(prompt))


def listed(setting: str) -> dict[Mood, float]:
    """The moods of a setting such as "late:30,twice"; an empty one has none."""
    return _sorted(filter(None, re.split(r"[,\s]+", setting)))


def _sorted(words: Iterable[str]) -> dict[Mood, float]:
    found = dict(map(_parsed, words))
    return {mood: found[mood] for mood in Mood if mood in found}


def _parsed(word: str) -> tuple[Mood, float]:
    name, _, value = word.partition(":")
    mood = next((mood for mood in Mood if mood == name), None)
    if mood is None:
        raise UnknownMood(f"unknown mood {name!r}; there are {', '.join(Mood)}")
    if not re.fullmatch(r"(\d+(\.\d+)?)?", value, re.ASCII):
        raise UnknownMood(f"mood {name}: {value!r} is not a number")
    return mood, float(value or mood.value_if_none)


def among(moods: Moods, table: Mapping[Mood, Any]) -> list[Mood]:
    """The moods that have an entry in a table, in the order of `Mood`."""
    return [mood for mood in moods if mood in table]


# At createTask, instead of a job. (VALUE, creates of this prompt that met the same mood before)

Refusal = Callable[[float, int], Response | None]

PROXY_PAGE = "<html><head><title>503 Service Temporarily Unavailable</title></head><body><hr>nginx</body></html>"


def _limited(value: float, earlier: int) -> Response | None:
    return reply(429, "Rate limit exceeded", status=429, headers={"retry-after": "1"}) if earlier < value else None


def _limited_bare(value: float, earlier: int) -> Response | None:
    return reply(429, "Rate limit exceeded", status=429) if earlier < value else None


def _down(value: float, earlier: int) -> Response | None:
    return HTMLResponse(PROXY_PAGE, 503) if earlier < value else None


REFUSALS: dict[Mood, Refusal] = {
    Mood.CODE: lambda value, _: reply(int(value), f"refused with code {value:.0f}"),
    Mood.STATUS: lambda value, _: reply(int(value), f"refused with status {value:.0f}", status=int(value)),
    Mood.LIMITED: _limited,
    Mood.LIMITED_BARE: _limited_bare,
    Mood.DOWN: _down,
}


# In every envelope.

SHAPES: dict[Mood, Callable[[Record], Record]] = {
    Mood.MESSAGE: lambda body: {("message" if key == "msg" else key): value for key, value in body.items()},
    Mood.CODE_STRING: lambda body: {**body, "code": str(body["code"])},
}


def shaped(body: Record, moods: Moods) -> Record:
    for mood in among(moods, SHAPES):
        body = SHAPES[mood](body)
    return body


# In the work. (VALUE, earlier jobs of this prompt)


@dataclass(frozen=True, kw_only=True)
class Failure:
    code: str
    text: str


REFUSED_PROMPT = Failure(
    code="500",
    text="Gemini could not generate an image with the given prompt. Please try again with a different prompt.",
)
SENSITIVE = Failure(
    code="400", text="The input or output was flagged as sensitive. Please try again with different inputs."
)
TRY_AGAIN = Failure(code="500", text="Internal Error, Please try again later.")

FAILURES: dict[Mood, Callable[[float, int], Failure | None]] = {
    Mood.FAILED: lambda _value, _earlier: REFUSED_PROMPT,
    Mood.FLAGGED: lambda _value, _earlier: SENSITIVE,
    Mood.INTERNAL: lambda value, earlier: TRY_AGAIN if earlier < value else None,
}


# Result URLs, in records and callbacks. (VALUE, what gives the URL of the picture with a number)


def _numbered(value: float, url: Callable[[int], str]) -> list[str]:
    return [url(number) for number in range(int(value))]


URLS: dict[Mood, Callable[[float, Callable[[int], str]], list[str]]] = {
    Mood.MULTI: _numbered,
    Mood.PARTIAL: _numbered,
    Mood.PRIVATE_URL: lambda _value, _url: ["http://10.0.0.1/x.png"],
}

NO_RESULTS: tuple[str | None, ...] = (None, "", '{"resultUrls":[]}', '{"resultUrls":["http')


def result_json(moods: Moods, url: Callable[[int], str]) -> str | None:
    """What `resultJson` of a success holds; `url` gives the URL of the picture with that number."""
    if Mood.NORESULT in moods:
        return NO_RESULTS[int(moods[Mood.NORESULT]) % len(NO_RESULTS)]
    mood = next((mood for mood in moods if mood in URLS), None)
    return json.dumps({"resultUrls": URLS[mood](moods[mood], url) if mood else [url(0)]})


# At recordInfo. None means "recordInfo is null"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One status read. reads, reads_since_end: with this one. age: seconds since the create."""

    record: Record
    reads: int
    reads_since_end: int
    age: float


def _unknown_state(value: float, reading: Reading) -> Record:
    strange = {**reading.record, "state": "contemplating", "resultJson": None}
    return strange if reading.reads <= value else reading.record


def _backwards(value: float, reading: Reading) -> Record:
    back = {**reading.record, "state": "generating", "resultJson": None, "completeTime": None}
    return back if 1 < reading.reads_since_end <= 1 + value else reading.record


READINGS: dict[Mood, Callable[[float, Reading], Record | None]] = {
    Mood.GRACE: lambda value, reading: None if reading.reads <= value else reading.record,
    Mood.GRACE_SECONDS: lambda value, reading: None if reading.age < value else reading.record,
    Mood.UNKNOWN_STATE: _unknown_state,
    Mood.BACKWARDS: _backwards,
}


def told(reading: Reading, moods: Moods) -> Record | None:
    for mood in among(moods, READINGS):
        record = READINGS[mood](moods[mood], reading)
        if record is None:
            return None
        reading = replace(reading, record=record)
    return reading.record


# Callbacks. (VALUE, the calls planned so far, what an attacker would send)

Seal = Literal["true", "none", "wrong", "stale"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A callback to be made. delay: seconds after the end of the job. age: of the signature's timestamp, seconds."""

    kind: str
    url: str
    body: Record
    delay: float = 0.0
    seal: Seal = "true"
    age: float = 0.0
    persistent: bool = True


Calls = tuple[Call, ...]


def _each(change: Callable[[float, Call], Call]) -> Callable[[float, Calls, Call], Calls]:
    return lambda value, calls, _attack: tuple(change(value, call) for call in calls)


def _none(_value: float, _calls: Calls, _attack: Call) -> Calls:
    return ()


def _data(call: Call, **changes: Any) -> Record:
    return {**call.body, "data": {**call.body["data"], **changes}}


def _disorder(_value: float, calls: Calls, _attack: Call) -> Calls:
    true = calls[-1:]
    stale = [replace(call, kind="generating", body=_data(call, state="generating", resultJson=None)) for call in true]
    failed = {"state": "fail", "resultJson": None, "failCode": TRY_AGAIN.code, "failMsg": TRY_AGAIN.text}
    fail = [replace(call, kind="failure", body={**_data(call, **failed), "code": 501}) for call in true]
    return (*calls, *stale, *fail)


def _attack(call: Call, evil: str) -> Call:
    """He has seen a task id, but no token and no key; and he shouts only once."""
    body = {**_data(call, state="success", resultJson=json.dumps({"resultUrls": [evil]})), "code": 200}
    url = urlunsplit(urlsplit(call.url)._replace(query=""))
    return replace(call, kind="forged", url=url, body=body, delay=0.0, seal="none", persistent=False)


def _toplevel(_value: float, call: Call) -> Call:
    data = {key: value for key, value in call.body["data"].items() if key != "taskId"}
    return replace(call, body={**call.body, "taskId": call.body["data"]["taskId"], "data": data})


def _snake(_value: float, call: Call) -> Call:
    data = {("task_id" if key == "taskId" else key): value for key, value in call.body["data"].items()}
    return replace(call, body={**call.body, "data": data})


def _contradiction(_value: float, call: Call) -> Call:
    return replace(call, body={**call.body, "code": 501 if call.body["code"] == 200 else 200})


CALLS: dict[Mood, Callable[[float, Calls, Call], Calls]] = {
    Mood.SILENT_LOST: _none,
    Mood.LOST: _none,
    Mood.LATE: _each(lambda value, call: replace(call, delay=value)),
    Mood.TWICE: lambda value, calls, _attack: calls * int(value),
    Mood.DISORDER: _disorder,
    Mood.FORGED: lambda _value, calls, attack: (attack, *calls),
    Mood.UNSIGNED: _each(lambda _value, call: replace(call, seal="none")),
    Mood.BADSIGN: _each(lambda _value, call: replace(call, seal="wrong")),
    Mood.STALE: _each(lambda value, call: replace(call, age=value)),
    Mood.CONTRADICTION: _each(_contradiction),
    Mood.TOPLEVEL: _each(_toplevel),
    Mood.SNAKE: _each(_snake),
}


def planned(true: Call, moods: Moods, evil: str) -> Calls:
    """The callbacks of a finished job, in the order they are made."""
    calls: Calls = (true,)
    for mood in among(moods, CALLS):
        calls = CALLS[mood](moods[mood], calls, _attack(true, evil))
    return tuple(replace(call, body=shaped(call.body, moods)) for call in calls)


# At downloads. The first mood with an answer gives it; None: the true picture


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A download. door: "p" (result URL), "moved" (after our redirect) or "fresh" (from download-url).

    earlier: downloads of this URL before. picture: paints, or takes it from the cache.
    """

    door: str
    name: str
    index: int
    base: str
    earlier: int
    picture: Callable[[], Awaitable[Picture]]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(1)</script></svg>'
METADATA = "http://169.254.169.254/latest/meta-data/"
DROPS = 20  # pieces of a trickling picture

Telling = Callable[[float, Scene], Awaitable[Response | None]]


def missing() -> Response:
    return HTMLResponse("<html><body><h1>404 Not Found</h1></body></html>", 404)


async def _gone(_value: float, _scene: Scene) -> Response:
    return missing()


async def _gone_once(value: float, scene: Scene) -> Response | None:
    return missing() if scene.earlier < value else None


async def _expiring(_value: float, scene: Scene) -> Response | None:
    return None if scene.door == "fresh" else missing()


async def _partial(value: float, scene: Scene) -> Response | None:
    return missing() if scene.index == int(value) - 1 else None


async def _html(_value: float, _scene: Scene) -> Response:
    return HTMLResponse("<html><body>Please come back later.</body></html>")


async def _truncated(value: float, scene: Scene) -> Response | None:
    return HangUp(await scene.picture()) if not value or scene.earlier < value else None


async def _drip(value: float, scene: Scene) -> Response:
    picture = await scene.picture()
    headers = {"content-length": str(picture.size)}
    return StreamingResponse(_trickle(picture, value / DROPS), headers=headers, media_type=picture.media_type)


async def _trickle(picture: Picture, pause: float) -> Any:
    whole = b"".join(picture.pieces)
    step = len(whole) // DROPS + 1
    for at in range(0, len(whole), step):
        await anyio.sleep(pause)
        yield whole[at : at + step]


async def _wrongtype(_value: float, scene: Scene) -> Response:
    return stream(await scene.picture(), "application/octet-stream")


async def _redirect(_value: float, scene: Scene) -> Response | None:
    return RedirectResponse(f"{scene.base}/moved/{scene.name}", 302) if scene.door == "p" else None


async def _redirect_private(_value: float, _scene: Scene) -> Response:
    return RedirectResponse(METADATA, 302)


async def _bomb(_value: float, _scene: Scene) -> Response:
    return Response(await to_thread.run_sync(painter.bomb), media_type="image/png")


async def _svg(_value: float, _scene: Scene) -> Response:
    return Response(SVG, media_type="image/svg+xml")


async def _corrupt(_value: float, scene: Scene) -> Response:
    picture = await scene.picture()
    whole, half = b"".join(picture.pieces), picture.size // 2
    rubbish = hashlib.shake_256(b"rubbish").digest(picture.size - half)
    return Response(whole[:half] + rubbish, media_type=picture.media_type)


DOWNLOADS: dict[Mood, Telling] = {
    Mood.PARTIAL: _partial,
    Mood.GONE: _gone,
    Mood.GONE_ONCE: _gone_once,
    Mood.EXPIRING: _expiring,
    Mood.HTML: _html,
    Mood.TRUNCATED: _truncated,
    Mood.DRIP: _drip,
    Mood.WRONGTYPE: _wrongtype,
    Mood.REDIRECT: _redirect,
    Mood.REDIRECT_PRIVATE: _redirect_private,
    Mood.BOMB: _bomb,
    Mood.SVG: _svg,
    Mood.CORRUPT: _corrupt,
}


async def shown(scene: Scene, moods: Moods) -> Response:
    """The answer to a download."""
    for mood in among(moods, DOWNLOADS):
        if answer := await DOWNLOADS[mood](moods[mood], scene):
            return answer
    return stream(await scene.picture())
