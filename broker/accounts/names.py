"""User names: normalised, so that two names that look the same are the same, and the key they are looked up by."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from broker.errors import ApiError

MAX_CHARS: Final = 64
MAX_RAW_CHARS: Final = 256
"""Longer texts are not normalised."""
MAX_EMAIL_CHARS: Final = 254

_EMAIL: Final = re.compile(r"[^\s@\x00-\x1f\x7f]{1,64}@[^\s@\x00-\x1f\x7f.]+(\.[^\s@\x00-\x1f\x7f.]+)*")
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Controls, format characters (zero-width, bidirectional), lone surrogates, private and unassigned ones."""
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that are drawn as nothing."""
_LOOK_ALIKE_SCRIPTS: Final = frozenset({"LATIN", "CYRILLIC", "GREEK"})
"""Scripts that share letters: a word in two of them imitates another."""


@dataclass(frozen=True, kw_only=True)
class UserName:
    """A valid name."""

    shown: str
    key: str
    """Unique; equal for names that differ in case, width or composition only."""


def parse_name(text: str) -> UserName:
    """Return the normalised name. Raises `ApiError("invalid_request")` for one that cannot be shown safely."""
    shown = _normalise(text) if len(text) <= MAX_RAW_CHARS else ""
    key = _fold(shown)
    if not 1 <= len(shown) <= MAX_CHARS or not 1 <= len(key) <= MAX_CHARS or _is_deceptive(shown):
        raise ApiError(
            "invalid_request",
            f"A user name has 1 to {MAX_CHARS} visible characters, without line breaks and control characters, and no "
            "word mixes Latin with Cyrillic or Greek letters.",
            field="username",
            message_key="user_name_rule",
        )
    return UserName(shown=shown, key=key)


def lookup_key(text: str) -> str:
    """Return the key by which a login looks a name up; also for texts that are no valid names, which nobody has."""
    return _fold(_normalise(text[:MAX_RAW_CHARS]))


def parse_email(text: str | None) -> str | None:
    """Return an address without blanks around it, or None. Raises `ApiError("invalid_request")` for a wrong one."""
    address = (text or "").strip()
    if not address:
        return None
    if len(address) > MAX_EMAIL_CHARS or not _EMAIL.fullmatch(address) or not address.isprintable():
        raise ApiError("invalid_request", "This is not an e-mail address: name@example.com.", field="email")
    return address


def _normalise(text: str) -> str:
    """Return compatible characters in one form, and single blanks between words."""
    return " ".join(filter(None, unicodedata.normalize("NFKC", text).split(" ")))


def _fold(shown: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", shown).casefold())
    return " ".join(folded.split())


def _is_deceptive(name: str) -> bool:
    if _INVISIBLE.search(name) or unicodedata.category(name[0]).startswith("M"):
        return True
    if any(unicodedata.category(c) in _REFUSED_CATEGORIES or (c.isspace() and c != " ") for c in name):
        return True
    return any(len(_scripts_of(word) & _LOOK_ALIKE_SCRIPTS) > 1 for word in name.split(" "))


def _scripts_of(word: str) -> set[str]:
    return {unicodedata.name(c, "").partition(" ")[0] for c in word if c.isalpha()}
