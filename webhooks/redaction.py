"""Redaction of secrets in what is stored of a callback: callback tokens, and secret values that the broker knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

MASK: Final = "[hidden]"
MIN_SECRET_LENGTH: Final = 8
"""Shorter secrets are not redacted: they could be any word of a body."""
MIN_TOKEN_LENGTH: Final = 16
"""Shorter query values are not tokens of the broker."""

_TOKEN: Final = re.compile(r"token(=|\\+u003d|%3d|%253d)[0-9a-f]{32}", re.IGNORECASE)
"""A token as it appears in a URL, in JSON with HTML-safe escapes, and in a URL within a URL."""
_ESCAPED: Final = re.compile(r"u[0-9a-fA-F]{4}|[bfnrt]")
"""The end of an escape sequence of JSON, after its backslash."""
_BACKSLASHES: Final = r"\\{0,7}"
"""Of an escape sequence, also in JSON in a string in a string. A limit, so that the search takes linear time."""


class Redactor:
    """Masks secrets in texts, in the spellings of plain text, JSON and URLs, also one in the other."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH}, key=len, reverse=True)
        self._patterns = [(_longest_word(secret), re.compile(_spellings(secret))) for secret in known]

    def extend(self, secrets: Iterable[str]) -> Redactor:
        """Return a redactor that knows these secrets, too."""
        more = Redactor(secrets)
        if more._patterns:
            more._patterns = [*self._patterns, *more._patterns]
            return more
        return self

    def redact(self, text: str, token: str | None = None) -> str:
        """Return the text with every secret masked; JSON stays JSON. token: that of the request."""
        if token and len(token) >= MIN_TOKEN_LENGTH:
            text = text.replace(token, MASK)
        for word, pattern in self._patterns:
            if word in text:  # the same in every spelling, and found in a fraction of the time
                text = pattern.sub(_mask, text)
        return _TOKEN.sub(rf"token\1{MASK}", text) if "token" in text.lower() else text  # the search alone takes longer


def _longest_word(secret: str) -> str:
    """Return the longest part of a secret that no encoding changes."""
    return max(re.split(r"[^0-9A-Za-z]", secret), key=len)


def _spellings(secret: str) -> str:
    return "".join(_spellings_of(char) for char in secret)


def _spellings_of(char: str) -> str:
    """Return a pattern of one character: as it is, escaped in JSON, as `\\u…`, percent-encoded once or more."""
    if char.isascii() and char.isalnum():
        return char
    units = char.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    escaped = json.dumps(char, ensure_ascii=False)[1:-1].removeprefix("\\")
    choices = [
        rf"{_BACKSLASHES}{re.escape(char)}",
        *([] if escaped == char else [rf"{_BACKSLASHES}\\{re.escape(escaped)}"]),
        *([r"\+"] if char == " " else []),
        "(?i:" + "".join(rf"{_BACKSLASHES}\\u{unit}" for unit in units) + ")",
        "(?i:" + "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in char.encode("utf-8", "replace")) + ")",
    ]
    return f"(?:{'|'.join(choices)})"


def _mask(match: re.Match[str]) -> str:
    """Return the mask. Behind a backslash, the first characters may be the end of an escape sequence: they stay."""
    is_escaped = match.string[match.start() - 1 : match.start()] == "\\"
    end = _ESCAPED.match(match[0]) if is_escaped else None
    return (end[0] if end else "") + MASK
