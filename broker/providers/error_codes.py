"""Classes of errors: what each code, name and phrase of a provider means in the closed set of task error codes.

Data first: a row per value that a provider documents or was seen to send. Below them `ErrorTable`, which reads the rows
in the order in which they decide. A value that no table has stays visible as received, and is counted.

Names and phrases are shared by all providers, because resellers pass on those of the model's vendor. The table of the
numeric codes belongs to a family of APIs, or to one provider.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.reports import Billed


@dataclass(frozen=True, kw_only=True)
class ErrorClass:
    """The meaning of an error."""

    code: str
    """Of the closed set."""
    retryable: bool = False
    """Another attempt may succeed."""
    billed: Billed | None = None
    """What the error implies about money; None if nothing.

    Only a rate limit, a fault of the account and a refund certainly cost nothing. A safety block is billed by some
    (relays of Gemini), and so is a response without an image.
    """
    known: bool = True
    """False if no table had it, so that the class is a guess."""


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
    return {name.lower(): error for names, error in rows for name in names.split()}


# -- numbers

HTTP_ACCOUNT: Final[Mapping[int, ErrorClass]] = {401: AUTH, 402: CREDITS, 403: AUTH, 429: RATE}
"""Codes about the account or the service: whatever the message, they are not about this order."""

HTTP_ORDER: Final[Mapping[int, ErrorClass]] = {
    **dict.fromkeys((400, 404, 405, 422), REJECTED),
    500: FAILED,
    502: FAILED,
    503: AWAY,
    504: FAILED,
}
"""Codes about one order, which decide only where the message is not more specific."""

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
    # Replicate: codes at the end of a model's message
    ("E001", CREDITS),
    ("E002", AUTH),
    ("E003 E004", AWAY),
    ("E005", SAFETY_INPUT),
    # AceDataCloud
    ("invalid_token token_mismatched", AUTH),
    ("too_many_requests", RATE),
    ("api_not_implemented", REJECTED),
)
"""Names of failures; they are more specific than the code that accompanies them."""

VAGUE_NAMES: Final[dict[str, ErrorClass]] = _rows(
    ("INVALID_ARGUMENT NOT_FOUND", REJECTED),  # Gemini; the second: the model is gone
    ("INTERNAL DEADLINE_EXCEEDED", FAILED),  # Gemini
    ("api_error", FAILED),  # AceDataCloud
)
"""Names as unspecific as a number: the message may be more specific."""

# -- phrases

_FLAGGED: Final = r"(sensitive|flagged|\bpolic(y|ies)\b|moderat|nsfw|prohibited|safety|unsafe|violat)"
_OUTPUT_ONLY: Final = r"(?!.*\b(inputs?|prompts?)\b)(?=.*\b(outputs?|generated|results?)\b)"

PHRASES: Final[tuple[tuple[re.Pattern[str], ErrorClass], ...]] = tuple(
    (re.compile(pattern, re.I | re.S), error)
    for pattern, error in (
        # the content
        (rf"^{_OUTPUT_ONLY}.*{_FLAGGED}", SAFETY_OUTPUT),
        (_FLAGGED, SAFETY_INPUT),
        # the account, from a gateway that omits the code
        (r"not enough credits|insufficient (credits?|balance|funds)|out of credits|usage limit exceeded", CREDITS),
        (r"exhausted balance", CREDITS),  # fal, with 403
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
"""Phrases of real messages, in the order in which they decide."""

_EMPTY_MESSAGE: Final = re.compile(
    r"(no reason given|(the )?((playground )?task|(image )?generation) failed\.?|failed\.?)?", re.I
)
_IDENTIFIER: Final = re.compile(r"\b(?:[A-Z]+(?:_[A-Z]+)+|[a-z]+(?:_[a-z]+)+|E00[0-9])\b")


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """The numeric codes of one provider, and the classification of its errors."""

    account: Mapping[int, ErrorClass]
    order: Mapping[int, ErrorClass]
    catch_all: frozenset[int] = frozenset()
    """Codes that the provider uses for every failure: beside an unknown message the class is a guess."""

    def classify(self, code: int | None, message: str, names: Sequence[str] = ()) -> ErrorClass:
        """Return the class of an error. names: what the body calls it, apart from code and message.

        1. A specific name. 2. A code about the account. 3. The message: names in it, statements about the content,
        known phrases. 4. An unspecific name. 5. A code about the order, or at last its hundreds, which is a guess. A
        message may repeat a prompt, so it never decides what is billed.
        """
        return (
            _find_name(NAMES, names)
            or self.account.get(code or 0)
            or _by_message(message)
            or _find_name(VAGUE_NAMES, [*names, *_names_in(message)])
            or self._by_code(code or 0, message)
        )

    def _by_code(self, code: int, message: str) -> ErrorClass:
        is_empty = bool(_EMPTY_MESSAGE.fullmatch(message.strip()))
        if code in self.order:
            return replace(self.order[code], known=is_empty or code not in self.catch_all)
        guess = REJECTED if 400 <= code < 500 else replace(FAILED, retryable=code >= 500)
        return replace(guess, known=is_empty and not code)


def _names_in(message: str) -> Iterator[str]:
    """Yield the names in a message; only those that no sentence contains by chance."""
    yield message.strip()
    yield from _IDENTIFIER.findall(message)


def _find_name(table: Mapping[str, ErrorClass], names: Sequence[str]) -> ErrorClass | None:
    return next((table[name.lower()] for name in names if name.lower() in table), None)


def _by_message(message: str) -> ErrorClass | None:
    found = _find_name(NAMES, list(_names_in(message)))
    found = found or next((error for pattern, error in PHRASES if pattern.search(message)), None)
    return replace(found, billed=None) if found else None
