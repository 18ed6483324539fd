"""Tolerant parsing of what providers respond and call back with: ids, states, result URLs, costs, error messages.

Shared by adapters of one family of APIs: an envelope `{"code", "msg", "data"}` around a job, in many spellings. Nothing
here raises on strange input, and plausibility proves nothing: an unreadable value is None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from broker.reports import Billed

State = Literal["running", "done", "failed", "unknown"]

SUCCESS_CODES: Final = frozenset({0, 200})
"""Envelope codes that mean success (kie.ai documents 200; 0 is seen in the wild)."""
MAX_OUTPUTS: Final = 16
MAX_URL_LENGTH: Final = 4096
MAX_CANDIDATES: Final = 1000
"""Strings examined in search of URLs; bounds the work on a hostile body."""
MAX_SALVAGE: Final = 2**20
MAX_NAMES: Final = 8

_OLDEST: Final = 946_684_800.0
_NEWEST: Final = 4_102_444_800.0
"""The century in which jobs end, in seconds since the epoch; a larger number counts smaller units."""

TASK_IDS: Final = ("taskId", "task_id")
"""kie.ai's names of a job's id. Other names may mean a request or an account, so an order is not bound to them."""
ANY_IDS: Final = (*TASK_IDS, "job_id", "jobId", "id")

_STATES: Final[dict[str, State]] = {
    **dict.fromkeys("waiting queuing queued pending submitted created starting".split(), "running"),
    **dict.fromkeys("generating processing running in_progress".split(), "running"),
    **dict.fromkeys("success succeeded completed complete finished done".split(), "done"),
    **dict.fromkeys("fail failed failure error canceled cancelled timeout".split(), "failed"),
}
_STATE_FIELDS: Final = ("state", "status", "taskStatus", "task_status")
_COST_FIELDS: Final = ("creditsConsumed", "consumeCredits", "credits_consumed")
_END_FIELDS: Final = ("completeTime", "complete_time", "completedAt", "completed_at")
_PLACES: Final = ("resultJson", "output", "result", "info", "response")
_URL_FIELDS: Final = (
    *("resultUrls", "result_urls", "resultUrl", "resultImageUrl", "result_url"),
    *("image_url", "imageUrl", "url", "image_urls", "imageUrls", "urls", "images"),
    *("result", "output", "data"),
)

_ONE_WORD: Final = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}")
_A_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,63}")
_WAIT: Final = re.compile(r"(?:^|resets in ~?)([0-9]{1,6}(?:\.[0-9]{1,9})?) ?s\b")
_QUERY: Final = re.compile(r"(https?:[^\s?\"'<>]+)\?[^\s\"'<>]*", re.I)
_RESULT_URLS: Final = re.compile(r'\s*\{\s*"resultUrls"\s*:\s*\[')
_QUOTED_URL: Final = re.compile(r'"https?:(?:[^"\\]++|\\.)*+"')
_FIELD: Final = re.compile(
    r'(?<!\\)"(taskId|state|resultJson|failCode|failMsg|creditsConsumed)"\s*:\s*("(?:[^"\\]++|\\.)*+"|[0-9.]+(?=[,}])|null)'
)


@dataclass(frozen=True, kw_only=True)
class ParsedResponse:
    """The content of one body about one job, before it is decided whether to trust it."""

    ids: tuple[str, ...]
    code: int | None
    """Of the envelope; None without one."""
    state: State | None
    outputs: tuple[str, ...]
    fail_code: str | None
    message: str
    cost: float | None
    ended_at: float | None
    """End of the job by the provider's clock, in seconds since the epoch."""
    names: tuple[str, ...] = ()
    """What the body calls a failure, apart from its code; most specific first."""
    stage: str | None = None
    """Progress, in the provider's word."""
    percent: float | None = None

    @classmethod
    def from_body(cls, body: Any, *, id_fields: Sequence[str] = TASK_IDS) -> ParsedResponse:
        """Parse a body; anything but a JSON object has no content."""
        top = mapping(_unwrapped(body))
        record = record_of(top)
        return cls(
            ids=ids_in(top, id_fields),
            code=to_code(top.get("code")),
            state=_state(record) or _state(top),
            outputs=outputs_in(record, top),
            fail_code=_fail_code(record, top),
            message=_message(record, top),
            cost=next((cost for name in _COST_FIELDS if (cost := amount(record.get(name))) is not None), None),
            ended_at=next((at for name in _END_FIELDS if (at := moment(record.get(name))) is not None), None),
            names=_names(record, top),
            stage=_stage(record) or _stage(top),
            percent=_percent(record),
        )

    @property
    def job_id(self) -> str | None:
        return self.ids[0] if self.ids else None

    @property
    def billed(self) -> Billed:
        """kie.ai: a job that consumed no credits was not billed; without that field it may have been."""
        if self.cost is None:
            return "unknown"
        return "yes" if self.cost > 0 else "no"


# -- pieces of a body


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def record_of(top: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the job inside the envelope, or the body itself without one."""
    return mapping(unpacked(top.get("data"))) or top


def unpacked(value: Any) -> Any:
    """Parse JSON inside strings, up to twice (kie.ai nests it); any other string is returned unchanged."""
    for _ in range(2):
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[", '"')):
            return value
        try:
            value = json.loads(value, strict=False)
        except (ValueError, RecursionError):
            return value
    return value


def amount(value: Any) -> float | None:
    """Return a finite non-negative number, also from a string; None otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def moment(value: Any) -> float | None:
    """Return seconds since the epoch from a count of seconds, milli- or microseconds, or from ISO 8601 with a zone.

    kie.ai's callbacks mix seconds and milliseconds. None for a time outside this century.
    """
    count = amount(value)
    seconds = _of_iso(text(value) or "") if count is None else count
    while seconds is not None and seconds > _NEWEST:
        seconds = seconds / 1000 if seconds < _NEWEST * 1e6 else None
    return seconds if seconds is not None and seconds >= _OLDEST else None


def _of_iso(words: str) -> float | None:
    try:
        at = datetime.fromisoformat(words[:40])
        return at.timestamp() if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def to_code(value: Any) -> int | None:
    """Return a code: a small integer, also from a string (some responses have "200")."""
    number = amount(value)
    return int(number) if number is not None and number == int(number) and number < 1_000_000 else None


def text(value: Any) -> str | None:
    """Return a non-empty string without surrounding blanks; None for everything else."""
    return value.strip() or None if isinstance(value, str) else None


def label(value: Any) -> str | None:
    """Return an id or a code: a short printable string, or a positive integer as one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return str(value)
    found = text(value)
    return found if found and len(found) <= 256 and found.isprintable() else None


def ids_in(top: Any, id_fields: Sequence[str] = ANY_IDS) -> tuple[str, ...]:
    """Return job ids, most specific first (kie.ai: `data.taskId`, `data.task_id`, `taskId`, `task_id`)."""
    body = mapping(top)
    places = (mapping(unpacked(body.get("data"))), body)
    specific = [place.get(name) for place in places for name in id_fields if name in TASK_IDS]
    others = [place.get(name) for place in places for name in id_fields if name not in TASK_IDS]
    return tuple(dict.fromkeys(found for value in (*specific, *others) if (found := label(value))))


def _state(record: Mapping[str, Any]) -> State | None:
    """Return the state; None without one, "unknown" for an undocumented word: such a job is not finished."""
    said = _state_text(record)
    return _STATES.get(said.lower().replace("-", "_"), "unknown") if said else None


def _state_text(record: Mapping[str, Any]) -> str | None:
    return next((found for name in _STATE_FIELDS if (found := text(record.get(name)))), None)


def _stage(record: Mapping[str, Any]) -> str | None:
    """Return the state in the provider's word, if it is a single word."""
    said = _state_text(record)
    return said if said and _ONE_WORD.fullmatch(said) else None


def _percent(record: Mapping[str, Any]) -> float | None:
    """Return `progress`, 0 … 100, of some models at kie.ai; 0, which the others send, means unknown."""
    found = amount(record.get("progress"))
    return found if found is not None and 0 < found <= 100 else None


def _unwrapped(body: Any) -> Any:
    """Remove the list of one element that Gemini sometimes puts around its error."""
    return body[0] if isinstance(body, list) and len(body) == 1 and "error" in mapping(body[0]) else body


def _names(record: Mapping[str, Any], top: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a failure: Gemini's reasons and statuses, fal's types, codes that are words."""
    places = (record, top) if record is not top else (record,)
    found = (name for place in places for value in _called(place) if (name := _name(value)))
    return tuple(islice(dict.fromkeys(found), MAX_NAMES))


def _called(place: Mapping[str, Any]) -> Iterator[Any]:
    error = mapping(place.get("error"))
    for detail in _items(error.get("details")):
        yield detail.get("reason")
    yield from (error.get("status"), error.get("type"), error.get("code"))
    for detail in _items(place.get("detail")):
        yield detail.get("type")
    yield mapping(place.get("promptFeedback")).get("blockReason")
    for candidate in _items(place.get("candidates")):
        yield candidate.get("finishReason")
    yield from (place.get(name) for name in ("failCode", "errorCode", "error_code", "error_type", "code"))


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [mapping(item) for item in value[:MAX_NAMES]] if isinstance(value, list) else []


def _name(value: Any) -> str | None:
    found = text(value)
    return found if found and _A_NAME.fullmatch(found) else None


def requested_wait(body: Any) -> float | None:
    """Return the seconds to wait that a body asks for: Gemini's `retryDelay`, Replicate's "resets in ~30s"."""
    top = mapping(_unwrapped(body))
    delays = [detail.get("retryDelay") for detail in _items(mapping(top.get("error")).get("details"))]
    for value in (*delays, top.get("detail")):
        if isinstance(value, str) and (match := _WAIT.search(value[:500])):
            return float(match[1])
    return None


def _fail_code(record: Mapping[str, Any], top: Mapping[str, Any]) -> str | None:
    own = (record.get("failCode"), record.get("errorCode"), mapping(record.get("error")).get("code"))
    code = next((found for value in own if (found := label(value))), None)
    envelope = to_code(top.get("code"))
    return code or (str(envelope) if envelope is not None and envelope not in SUCCESS_CODES else None)


def _message(record: Mapping[str, Any], top: Mapping[str, Any]) -> str:
    """Return the most specific message; the envelope's own only if its code is not success."""
    values = [
        *(record.get(name) for name in ("failMsg", "fail_msg", "errorMessage", "error_message")),
        *(found for place in (record, top) for found in _error_words(place.get("error"))),
    ]
    says_fine = to_code(top.get("code")) in SUCCESS_CODES
    places = [place for place in (record, top) if not (place is top and says_fine)]
    values += [place.get(name) for place in places for name in ("msg", "message", "detail")]
    values += [detail.get("msg") for place in (record, top) for detail in _items(place.get("detail"))]
    values += [candidate.get("finishMessage") for candidate in _items(top.get("candidates"))]
    return next((found for value in values if (found := text(value))), "no reason given")


def _error_words(error: Any) -> tuple[Any, ...]:
    return (error,) if isinstance(error, str) else (mapping(error).get("message"), mapping(error).get("msg"))


# -- results


def outputs_in(record: Mapping[str, Any], top: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URLs of the results: all that the first of these places has, without repeats.

    Places in order: kie.ai's `resultJson`; `output` and `result` of the older callback; `info` and `response` of
    kie.ai's sibling products; the job itself; the body.
    """
    places = [place.get(name) for place in (record, top) for name in _PLACES]
    for place in (*places, record, top):
        if found := links(place):
            return found
    return ()


def links(value: Any) -> tuple[str, ...]:
    """Return every acceptable URL in a value: a bare string, a list, an object with a known field, JSON of these."""
    candidates = islice(_candidates(value, depth=4), MAX_CANDIDATES)
    found = (candidate for candidate in candidates if candidate is not None)
    return tuple(islice(dict.fromkeys(filter(is_link, found)), MAX_OUTPUTS))


def first_link(values: Sequence[Any]) -> str | None:
    """Return the first of several fields that is a URL."""
    return next((found[0] for value in values if (found := links(value))), None)


def is_link(value: str) -> bool:
    """Return True for http(s) with a host, of limited length, without blanks or control characters."""
    if len(value) > MAX_URL_LENGTH or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False


def _candidates(value: Any, *, depth: int) -> Iterator[str | None]:
    """Yield every string that could be a URL, and None for each place examined: places are counted, too."""
    yield None
    value = unpacked(value)
    if depth == 0:
        return
    if isinstance(value, str):
        yield value.strip()
        yield from _truncated_urls(value)
    elif isinstance(value, list):
        for item in value:
            yield from _candidates(item, depth=depth - 1)
    elif isinstance(value, dict):
        for name in _URL_FIELDS:
            yield from _candidates(value.get(name), depth=depth - 1)


def _truncated_urls(broken: str) -> Iterator[str]:
    """Yield the complete URLs in a truncated `{"resultUrls": [...` (kie.ai cuts long records)."""
    if (start := _RESULT_URLS.match(broken)) is not None:
        for quoted in _QUOTED_URL.finditer(broken, start.end()):
            yield from _string(quoted[0])


def _string(quoted: str) -> Iterator[str]:
    try:
        yield str(json.loads(quoted, strict=False))
    except ValueError:
        return


def salvage_record(broken: str) -> Mapping[str, Any]:
    """Return the ended job in truncated JSON; empty unless it is beyond doubt.

    kie.ai's answers about jobs with a very long `param` are sometimes cut. Only fields with a complete value count;
    inside `param` (a string) every quote is escaped, so a prompt cannot pose as one. A field that comes twice with two
    values, or a success without its result, proves nothing.
    """
    found: dict[str, Any] = {}
    for name, quoted in _FIELD.findall(broken[:MAX_SALVAGE]):
        value = next(_string(quoted), None) if quoted.startswith('"') else amount(quoted)
        if found.setdefault(name, value) != value:
            return {}
    state = _state(found)
    return found if state == "failed" or (state == "done" and links(found.get("resultJson"))) else {}


# -- messages


def redact(words: str, secrets: Iterable[str] = ()) -> str:
    """Return a provider's message fit to be stored: no key, no query of a URL (it may hold a token), one short line."""
    for secret in filter(None, secrets):
        words = words.replace(secret, "[secret]")
    words = _QUERY.sub(r"\1?…", words[:4000])
    return "".join(char if char.isprintable() else " " for char in words)[:500]
