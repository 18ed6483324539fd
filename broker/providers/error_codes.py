"""What providers say when something fails, and what each code, name and text comes to in our closed set.

Data first: a row per thing that a provider documents or was seen to say. Below them the one function that reads the
tables, and the order in which they decide. What no table knows stays visible as it came, and is counted.

`billed` is what the provider says about money where its answer about the job does not: None = it does not say. Only a
rate limit, what is wrong with the account, and what was refunded certainly cost nothing; a safety block is billed by
some (relays of Gemini), and an answer without an image by some tiers of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.reports import Billed


@dataclass(frozen=True, kw_only=True)
class ErrorClass:
    """code: of the closed set. retryable: another attempt may succeed. known: some table said so, nobody guessed."""

    code: str
    retryable: bool = False
    billed: Billed | None = None
    known: bool = True


SAFETY_INPUT: Final = ErrorClass(code="safety_input")
SAFETY_OUTPUT: Final = ErrorClass(code="safety_output")
NO_IMAGE: Final = ErrorClass(code="no_image")
NO_IMAGE_BY_CHANCE: Final = ErrorClass(code="no_image", retryable=True)
REJECTED: Final = ErrorClass(code="provider_rejected")
AUTH: Final = ErrorClass(code="provider_auth", billed="no")
CREDITS: Final = ErrorClass(code="provider_credits", billed="no")
RATE: Final = ErrorClass(code="provider_rate_limited", retryable=True, billed="no")
AWAY: Final = ErrorClass(code="provider_unavailable", retryable=True)
FAILED: Final = ErrorClass(code="provider_error", retryable=True)
REFUNDED: Final = ErrorClass(code="provider_error", retryable=True, billed="no")


def _rows(*rows: tuple[str, ErrorClass]) -> dict[str, ErrorClass]:
    return {name.lower(): meaning for names, meaning in rows for name in names.split()}


# -- numbers

ACCOUNT: Final[dict[int, ErrorClass]] = {
    401: AUTH,
    402: CREDITS,
    403: AUTH,
    429: RATE,
    433: CREDITS,  # kie.ai: a sub-key's own limit
    455: AWAY,  # kie.ai: maintenance
}
"""Codes about the account or the service: whatever the words beside them, they are not about this order."""

ORDER: Final[dict[int, ErrorClass]] = {
    **dict.fromkeys((400, 404, 405, 422), REJECTED),
    408: FAILED,  # kie.ai, of a job: no result for more than ten minutes
    413: REJECTED,  # kie.ai: the input matches an existing work
    451: REJECTED,  # kie.ai: a reference image could not be downloaded
    500: FAILED,
    501: FAILED,  # kie.ai: generation failed
    502: FAILED,
    503: AWAY,
    504: FAILED,
    505: REJECTED,  # kie.ai: feature disabled
    531: REFUNDED,  # kie.ai: failed, credits returned
}
"""Codes about one order, where the words beside them say nothing better."""

CATCH_ALL: Final = frozenset({500, 501})
"""Codes that kie.ai gives to everything, even to a bad ratio: words beside them that nobody knows are news."""

# -- names

NAMES: Final[dict[str, ErrorClass]] = _rows(
    # Gemini: error status and reason
    ("API_KEY_INVALID UNAUTHENTICATED PERMISSION_DENIED FAILED_PRECONDITION", AUTH),  # the last: region, billing
    ("RESOURCE_EXHAUSTED", RATE),
    ("UNAVAILABLE", AWAY),
    # Gemini: finishReason and blockReason
    ("SAFETY IMAGE_SAFETY IMAGE_PROHIBITED_CONTENT RECITATION IMAGE_RECITATION SPII", SAFETY_OUTPUT),
    ("PROHIBITED_CONTENT BLOCKLIST MODEL_ARMOR JAILBREAK", SAFETY_INPUT),
    ("NO_IMAGE IMAGE_OTHER OTHER MALFORMED_FUNCTION_CALL", NO_IMAGE_BY_CHANCE),
    ("STOP MAX_TOKENS UNEXPECTED_TOOL_CALL TOO_MANY_TOOL_CALLS", NO_IMAGE),
    ("LANGUAGE", REJECTED),
    # fal: type of a detail
    ("content_policy_violation", SAFETY_INPUT),
    ("no_media_generated", NO_IMAGE),
    ("file_download_error image_too_large missing", REJECTED),
    # Replicate: codes at the end of a model's words
    ("E001", CREDITS),
    ("E002", AUTH),
    ("E003 E004", AWAY),
    ("E005", SAFETY_INPUT),
    # AceDataCloud
    ("invalid_token token_mismatched", AUTH),
    ("too_many_requests", RATE),
    ("api_not_implemented", REJECTED),
)
"""Failures with a name of their own; they tell more than the number beside them."""

VAGUE_NAMES: Final[dict[str, ErrorClass]] = _rows(
    ("INVALID_ARGUMENT NOT_FOUND", REJECTED),  # Gemini; the second: the model is gone
    ("INTERNAL DEADLINE_EXCEEDED", FAILED),  # Gemini
    ("api_error", FAILED),  # AceDataCloud
)
"""Names that say as little as a number: the words beside them may know better."""

# -- words

_FLAGGED: Final = re.compile(r"sensitive|flagged|\bpolic(y|ies)\b|moderat|nsfw|prohibited|safety|unsafe|violat", re.I)
_OUTPUT_ONLY: Final = re.compile(r"^(?!.*\b(inputs?|prompts?)\b).*\b(outputs?|generated|results?)\b", re.I | re.S)

WORDS: Final[tuple[tuple[re.Pattern[str], ErrorClass], ...]] = tuple(
    (re.compile(pattern, re.I), meaning)
    for pattern, meaning in (
        # the account, where a gateway says it without its number
        (r"not enough credits|insufficient (credits?|balance|funds)|out of credits|usage limit exceeded", CREDITS),
        (r"do not have access permissions|^unauthorized\b|api.?key (is )?(not valid|invalid)|invalid api.?key", AUTH),
        (r"rate limit|throttled|too many requests|resource has been exhausted", RATE),
        # the order
        (r"could not generate an? image|no image|no media|without an image", NO_IMAGE),
        (
            r"not within the range|allowed options|is required|must be|unsupported|not supported|too (long|large|many)"
            r"|\binvalid (parameter|value|input|image|url|prompt|aspect|model|format)|exceeds"
            r"|check the parameters|missing a thought_signature|matches an existing work|feature (is )?disabled"
            r"|model (is )?not found|(could not|cannot|failed to|unable to) (download|fetch|load)|recordInfo is null"
            r"|task not found",
            REJECTED,
        ),
        # the service
        (r"overloaded|high demand|maintenance|service is (currently |temporarily )?unavailable", AWAY),
        (r"internal (server )?error|try again later|temporar|overload|time.?out|unavailable|busy", FAILED),
    )
)
"""Words of real failures, in the order in which they decide: kie.ai reports even a bad ratio as code 500."""

_SAYS_NOTHING: Final = re.compile(
    r"(no reason given|(the )?((playground )?task|(image )?generation) failed\.?|failed\.?)?", re.I
)
_IDENTIFIER: Final = re.compile(r"\b(?:[A-Z]+(?:_[A-Z]+)+|[a-z]+(?:_[a-z]+)+|E00[0-9])\b")


def classify_error(code: int | None, words: str, names: Sequence[str] = ()) -> ErrorClass:
    """What a failure comes to. names: what its body calls it, beside its number and its words.

    1. A name that tells. 2. A number about the account. 3. Words: names in them, what is said of the content, others we
    know. 4. A name that tells little. 5. A number about the order; at last only its class, which is a guess. Words may
    repeat a prompt, so they never decide what is billed.
    """
    return (
        _first(NAMES, names)
        or ACCOUNT.get(code or 0)
        or _said(words)
        or _first(VAGUE_NAMES, [*names, *_names_in(words)])
        or _by_number(code or 0, words)
    )


def _names_in(words: str) -> Iterator[str]:
    """Names inside a sentence: only such as no sentence has by chance."""
    yield words.strip()
    yield from _IDENTIFIER.findall(words)


def _first(table: Mapping[str, ErrorClass], names: Sequence[str]) -> ErrorClass | None:
    return next((table[name.lower()] for name in names if name.lower() in table), None)


def _said(words: str) -> ErrorClass | None:
    found = _first(NAMES, list(_names_in(words))) or _flagged(words)
    found = found or next((meaning for pattern, meaning in WORDS if pattern.search(words)), None)
    return replace(found, billed=None) if found else None


def _flagged(words: str) -> ErrorClass | None:
    if not _FLAGGED.search(words):
        return None
    return SAFETY_OUTPUT if _OUTPUT_ONLY.match(words) else SAFETY_INPUT


def _by_number(code: int, words: str) -> ErrorClass:
    known = bool(_SAYS_NOTHING.fullmatch(words.strip()))
    if code in ORDER:
        return replace(ORDER[code], known=known or code not in CATCH_ALL)
    guess = REJECTED if 400 <= code < 500 else replace(FAILED, retryable=code >= 500)
    return replace(guess, known=known and not code)
