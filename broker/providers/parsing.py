"""Tolerant parsing of what providers respond and call back with: ids, states, result URLs, costs, error messages.

Shared by adapters of one family of APIs: an envelope `{"code", "msg", "data"}` around a job, in many spellings. Nothing
here raises on strange input, and plausibility proves nothing: an unreadable value is None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, islice
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AwareDatetime, TypeAdapter

from broker.reports import Billed
from webhooks.redaction import Redactor
from webhooks.strict_json import check_values

State = Literal["running", "done", "failed", "unknown"]
T = TypeVar("T")

SUCCESS_CODES: Final = frozenset({0, 200})
"""Envelope codes that mean success (kie.ai documents 200; 0 is seen in the wild)."""
MAX_OUTPUTS: Final = 16
MAX_URL_LENGTH: Final = 4096
MAX_CANDIDATES: Final = 1000
"""Strings examined in search of URLs; bounds the work on a hostile body."""
MAX_TEXT_CHARS: Final = 2**16
"""Of all texts beside a result together; each response about the task repeats them."""
MAX_REDACTED_CHARS: Final = 2**19
"""Of a message that is searched for secrets: so many that a secret cut in two is not within what is stored."""
MAX_SALVAGED_CHARS: Final = 2**20
MAX_ITEMS: Final = 8
"""Items of a list that are read, and names of a failure that are kept."""

_LENIENT: Final = json.JSONDecoder(strict=False)
_OLDEST: Final = 946_684_800.0
_NEWEST: Final = 4_102_444_800.0
"""The century in which jobs end, in seconds since the epoch."""
_MOMENT: Final = TypeAdapter(AwareDatetime)

TASK_IDS: Final = ("taskId", "task_id")
"""kie.ai's names of a job's id. Other names may mean a request or an account, so an order is not bound to them."""
ANY_IDS: Final = (*TASK_IDS, "job_id", "jobId", "id")

_STATES: Final[dict[str, State]] = {
    **dict.fromkeys("waiting queuing queued pending submitted created starting".split(), "running"),
    **dict.fromkeys("generating processing running in_progress".split(), "running"),
    **dict.fromkeys("success succeeded completed complete finished done".split(), "done"),
    **dict.fromkeys("fail failed failure error canceled cancelled aborted timeout".split(), "failed"),
}
_STATE_FIELDS: Final = ("state", "status", "taskStatus", "task_status")
_COST_FIELDS: Final = ("creditsConsumed", "consumeCredits", "credits_consumed")
_END_FIELDS: Final = ("completeTime", "complete_time", "completedAt", "completed_at")
_RESULT_FIELDS: Final = ("resultJson", "output", "outputs", "result", "info", "response")
"""kie.ai's; Replicate's and the older callback's; WaveSpeed's; the older callback's; kie.ai's sibling products'."""
_NAME_PATHS: Final = (
    *("error.details.*.reason", "error.status", "error.type", "error.code", "detail.*.type"),
    *("promptFeedback.blockReason", "candidates.*.finishReason"),
    *("failCode", "errorCode", "error_code", "error_type", "code"),
)
"""Places of Gemini's reasons and statuses, fal's types, and codes that are words."""
_URL_FIELDS: Final = (
    *("resultUrls", "result_urls", "resultUrl", "resultImageUrl", "result_url"),
    *("image_url", "imageUrl", "url", "image_urls", "imageUrls", "urls", "images"),
    *("result", "output", "data"),
)

_ONE_WORD: Final = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}")
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,63}")
_PLAIN_LINK: Final = re.compile(r"https?://[a-z0-9][a-z0-9.-]*(?::[0-9]+)?/[!-~]*")
_QUERY: Final = re.compile(r"(https?:[^\s?\"'<>]+)\?[^\s\"'<>]*", re.I)
_FIELD: Final = re.compile(
    r'(?<!\\)"(taskId|state|resultJson|failCode|failMsg|creditsConsumed)"\s*:\s*("(?:[^"\\]++|\\.)*+"|[0-9.]+(?=[,}]))'
)


@dataclass(frozen=True, kw_only=True)
class FailureWords:
    """What a body says about a failure, if it is about one."""

    code: str | None
    message: str
    names: tuple[str, ...]
    """Names of the failure, apart from its code; most specific first."""


class ParsedResponse:
    """The content of one body about one job, before it is decided whether to trust it.

    Most parts are read when they are needed: the response to an order has hardly more than an id.
    """

    def __init__(self, body: Any, *, id_fields: Sequence[str] = TASK_IDS) -> None:
        """Parse a body; anything but a JSON object has no content. id_fields: names of a job's id."""
        self.top = top = mapping(body)
        self.record = record_of(top)
        """The job inside the envelope."""
        self.code = to_code(top.get("code"))
        """Of the envelope; None without one."""
        self.ids = _ids_at((self.record, top) if self.record is not top else (top,), tuple(id_fields))

    @cached_property
    def state(self) -> State | None:
        return to_state(_first_in((self.record, self.top), text, _STATE_FIELDS))

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return _outputs_in(self.record, self.top)

    @property
    def cost(self) -> float | None:
        return _first_in((self.record,), amount, _COST_FIELDS)

    @property
    def ended_at(self) -> float | None:
        """End of the job by the provider's clock, in seconds since the epoch."""
        return _first_in((self.record,), moment, _END_FIELDS)

    @property
    def stage(self) -> str | None:
        """Progress, in the provider's word."""
        word = _first_in((self.record, self.top), text, _STATE_FIELDS)
        return word if word and _ONE_WORD.fullmatch(word) else None

    @property
    def percent(self) -> float | None:
        found = amount(self.record.get("progress"))  # kie.ai: of some models; the others send 0
        return found if found and found <= 100 else None

    @cached_property
    def failure(self) -> FailureWords:
        """Few bodies are about one, and to look for its words takes as long as the rest."""
        at = self.record, self.top
        return FailureWords(code=_fail_code(*at), message=_message(*at), names=_names(*at))

    def read_parts(self) -> None:
        """Read the parts that can take long, where it delays nothing else."""
        _ = self.state, self.outputs, self.failure

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


def values_at(places: Iterable[Any], *paths: str) -> Iterator[Any]:
    """Yield the values at dotted paths in each of several objects; `*` stands for the first items of a list."""
    for place in places:
        for path in paths:
            key, _, rest = path.partition(".")
            if key != "*" and (not isinstance(place, dict) or key not in place):
                continue  # most of the many paths that a body is asked for lead nowhere
            if rest or key == "*":
                yield from _values_below(place, path)
            else:
                yield place[key]


def _values_below(place: Any, path: str) -> list[Any]:
    found = [place]
    for key in path.split("."):
        if key == "*":
            found = [item for value in found if isinstance(value, list) for item in value[:MAX_ITEMS]]
        else:
            found = [value.get(key) for value in found if isinstance(value, dict)]
    return found


def _first_in(places: Iterable[Mapping[str, Any]], parse: Callable[[Any], T | None], names: Sequence[str]) -> T | None:
    """Return the first value of several names in several objects that can be parsed."""
    for place in places:
        for name in names:
            if name in place and (parsed := parse(place[name])) is not None:
                return parsed
    return None


def first(parse: Callable[[Any], T | None], values: Iterable[Any]) -> T | None:
    """Return the first of several values that can be parsed."""
    return next((parsed for value in values if (parsed := parse(value)) is not None), None)


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def record_of(top: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the job inside the envelope, or the body itself without one."""
    return mapping(unpacked(top.get("data"))) or top


def unpacked(value: Any) -> Any:
    """Parse JSON inside strings, up to twice (kie.ai nests it); any other string is returned unchanged."""
    for _ in (1, 2):
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[", '"')):
            return value
        try:
            check_values(value)
            value = _LENIENT.decode(value)
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
    """Return seconds since the epoch from a count of seconds or milliseconds, or from ISO 8601 with a zone.

    kie.ai's callbacks mix seconds and milliseconds. None for a time outside this century.
    """
    at = amount(value)
    if at is None:
        try:
            at = _MOMENT.validate_python(value).timestamp()
        except (ValueError, OverflowError):
            return None
    elif at > _NEWEST:
        at /= 1000.0
    return at if _OLDEST <= at <= _NEWEST else None


def to_code(value: Any) -> int | None:
    """Return a code: a small integer, also from a string (some responses have "200")."""
    number = amount(value)
    return int(number) if number is not None and number == int(number) and number < 1_000_000 else None


def text(value: Any) -> str | None:
    """Return a non-empty string without surrounding blanks; None for everything else."""
    return value.strip() or None if isinstance(value, str) else None


def texts(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the texts among the values, cut where they are too long together."""
    left = MAX_TEXT_CHARS
    found: list[str] = []
    for value in filter(None, map(text, values)):
        if left:
            found.append(value[:left])
            left -= len(found[-1])
    return tuple(found)


def label(value: Any) -> str | None:
    """Return an id or a code: a short printable string, or a positive integer as one."""
    if isinstance(value, str):
        return found if (found := value.strip()) and len(found) <= 256 and found.isprintable() else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else None


def to_state(word: str | None) -> State | None:
    """Return the state; None without one, "unknown" for an undocumented word: such a job is not finished."""
    return _STATES.get(word.lower().replace("-", "_"), "unknown") if word else None


def ids_in(top: Any, id_fields: Sequence[str] = ANY_IDS) -> tuple[str, ...]:
    """Return job ids, most specific first (kie.ai: `data.taskId`, `data.task_id`, `taskId`, `task_id`)."""
    return _ids_at((mapping(unpacked((top := mapping(top)).get("data"))), top), tuple(id_fields))


def _ids_at(places: Sequence[Mapping[str, Any]], id_fields: tuple[str, ...]) -> tuple[str, ...]:
    values = [place[name] for names in _id_ranks(id_fields) for place in places for name in names if name in place]
    return tuple(dict.fromkeys(filter(None, map(label, values))))


@cache
def _id_ranks(id_fields: tuple[str, ...]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of ids that mean a job for certain, and the others."""
    return [name for name in id_fields if name in TASK_IDS], [name for name in id_fields if name not in TASK_IDS]


def _names(record: Mapping[str, Any], top: Mapping[str, Any]) -> tuple[str, ...]:
    found = (text(value) for value in values_at((record, top), *_NAME_PATHS))
    return tuple(islice(dict.fromkeys(name for name in found if name and _IDENTIFIER.fullmatch(name)), MAX_ITEMS))


def _fail_code(record: Mapping[str, Any], top: Mapping[str, Any]) -> str | None:
    code = first(label, values_at((record,), "failCode", "errorCode", "error.code"))
    envelope = to_code(top.get("code"))
    return code or (str(envelope) if envelope is not None and envelope not in SUCCESS_CODES else None)


def _message(record: Mapping[str, Any], top: Mapping[str, Any]) -> str:
    """Return the most specific message; the envelope's own only if its code is not success."""
    is_success = to_code(top.get("code")) in SUCCESS_CODES
    failing = [place for place in (record, top) if not (place is top and is_success)]
    values = chain(
        values_at((record,), "failMsg", "fail_msg", "errorMessage", "error_message"),
        values_at((record, top), "error", "error.message", "error.msg"),
        values_at(failing, "msg", "message", "detail"),
        values_at((record, top), "detail.*.msg", "candidates.*.finishMessage"),
    )
    return first(text, values) or "no reason given"


# -- results


def _outputs_in(record: Mapping[str, Any], top: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URLs of the results: all that the first field, the job or else the body has, without repeats."""
    for place in (record, top):
        for name in _RESULT_FIELDS:
            if name in place and (found := links(place[name])):
                return found
    return links(record) or links(top)


def links(value: Any) -> tuple[str, ...]:
    """Return every acceptable URL in a value: a bare string, a list, an object with a known field, JSON of these."""
    found: list[str | None] = []
    _collect_candidates(value, 4, found)
    return tuple(islice(dict.fromkeys(filter(is_link, filter(None, found))), MAX_OUTPUTS))


def is_link(value: str) -> bool:
    """Return True for http(s) with a host, of limited length, without blanks or control characters."""
    if len(value) > MAX_URL_LENGTH or not value.isprintable() or " " in value:
        return False
    if _PLAIN_LINK.fullmatch(value):  # nearly all, at a tenth of the time
        return True
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False


def _collect_candidates(value: Any, depth: int, found: list[str | None]) -> None:
    """Append every string that could be a URL, and None for each place examined: places are counted, too.

    Nothing is appended beyond `MAX_CANDIDATES`.
    """
    if len(found) >= MAX_CANDIDATES:
        return
    found.append(None)
    value = unpacked(value) if depth else None
    if isinstance(value, str) and len(found) < MAX_CANDIDATES:
        found.append(value.strip())
    elif isinstance(value, list):
        for item in value[:MAX_CANDIDATES]:
            _collect_candidates(item, depth - 1, found)
    elif isinstance(value, dict):
        for name in _URL_FIELDS:
            if name in value:
                _collect_candidates(value[name], depth - 1, found)


def salvage_record(broken: str) -> Mapping[str, Any]:
    """Return the ended job in truncated JSON; empty unless it is beyond doubt.

    kie.ai's answers about jobs with a very long `param` are sometimes cut. Only fields with a complete value count;
    inside `param` (a string) every quote is escaped, so a prompt cannot pose as one. A field that comes twice with two
    values, or a success without its result, proves nothing.
    """
    found: dict[str, Any] = {}
    for name, value in _FIELD.findall(broken[:MAX_SALVAGED_CHARS]):
        if found.setdefault(name, value) != value:
            return {}
    found = {name: unpacked(value) for name, value in found.items()}
    state = to_state(text(found.get("state")))
    return found if state == "failed" or (state == "done" and links(found.get("resultJson"))) else {}


# -- messages


def redact(words: str, secrets: Iterable[str] = ()) -> str:
    """Return a provider's message fit to be stored: no key, no query of a URL (it may hold a token), one short line."""
    known = [secret for secret in secrets if secret]
    for secret in known:
        words = words.replace(secret, "[secret]")
    words = Redactor(known).redact(words[:MAX_REDACTED_CHARS])  # as JSON or a URL within the message spells it
    words = _QUERY.sub(r"\1?…", words[:4000])
    return "".join(char if char.isprintable() else " " for char in words)[:500]
